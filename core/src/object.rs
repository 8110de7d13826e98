//! JSON of others, read from objects alone. A derived `Deserialize` takes an array as well, and its
//! elements for the fields in their order: so an array would be a pod, a note or an answer.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};

/// A type that is read from the members of an object; [`crate::from_objects`] implements it.
pub trait FromMembers<'de>: Sized {
    /// Read these members.
    ///
    /// # Errors
    /// When one of them is wrong or missing.
    fn from_members<A: MapAccess<'de>>(members: MapAccessDeserializer<A>)
    -> Result<Self, A::Error>;
}

/// Read an object, and nothing else.
///
/// # Errors
/// When it is something else, or a member is wrong or missing.
pub fn read<'de, T: FromMembers<'de>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    from.deserialize_map(Members(PhantomData))
}

struct Members<T>(PhantomData<T>);

impl<'de, T: FromMembers<'de>> Visitor<'de> for Members<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<T, A::Error> {
        T::from_members(MapAccessDeserializer::new(members))
    }
}

/// Have types read from objects alone. Each derives `Deserialize` with `#[serde(remote = "Self")]`,
/// which makes a function of its own of what is derived; behind `and written`, `Serialize` too.
#[macro_export]
macro_rules! from_objects {
    (and written: $($name:ty),+ $(,)?) => {
        $crate::from_objects!($($name),+);
        $(
            impl ::serde::Serialize for $name {
                fn serialize<S: ::serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                    <$name>::serialize(self, to)
                }
            }
        )+
    };
    ($($name:ty),+ $(,)?) => {$(
        impl<'de> $crate::object::FromMembers<'de> for $name {
            fn from_members<A: ::serde::de::MapAccess<'de>>(
                members: ::serde::de::value::MapAccessDeserializer<A>,
            ) -> Result<Self, A::Error> {
                <$name>::deserialize(members)
            }
        }

        impl<'de> ::serde::Deserialize<'de> for $name {
            fn deserialize<D: ::serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                $crate::object::read(from)
            }
        }
    )+};
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    #[derive(Debug, Default, PartialEq, Deserialize, Serialize)]
    #[serde(remote = "Self", default, rename_all = "camelCase")]
    struct Outer {
        first_name: String,
        inner: Option<Inner>,
    }

    #[derive(Debug, PartialEq, Deserialize, Serialize)]
    #[serde(remote = "Self")]
    struct Inner {
        name: String,
    }

    crate::from_objects!(and written: Outer, Inner);

    #[test]
    fn arrays_are_no_objects_at_any_depth() {
        let text = r#"{"firstName":"a","inner":{"name":"b"}}"#;
        let outer: Outer = serde_json::from_str(text).unwrap();
        let inner = Some(Inner { name: "b".to_owned() });
        assert_eq!(outer, Outer { first_name: "a".to_owned(), inner });
        assert_eq!(serde_json::to_string(&outer).unwrap(), text);
        assert_eq!(serde_json::from_str::<Outer>("{}").unwrap(), Outer::default());
        for bad in [r#"["a",{"name":"b"}]"#, r#"{"inner":["b"]}"#, "[]", "7", "null"] {
            assert!(serde_json::from_str::<Outer>(bad).is_err(), "{bad}");
        }
    }
}
