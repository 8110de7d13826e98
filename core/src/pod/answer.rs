//! Which answer to the question for a pod tells anything of it.

use serde::Deserialize;

use super::{Manifest, PodFacts};

/// The kind of a pod's manifest, and the version of the API that has it.
const POD: &str = "Pod";
const VERSION: &str = "v1";

/// The annotation by which the API's mirror of a static pod tells the node's own id of it
/// (Kubernetes, «Well-Known Labels, Annotations and Taints»).
const MIRROR: &str = "kubernetes.io/config.mirror";

/// What somebody answers who is asked for a pod. It tells nothing before it is known to be that
/// pod: what is missing in something else would be taken for missing in the pod.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "Manifest")]
pub struct Answer {
    /// The kind of object that it says it is; empty where it says null.
    kind: Option<String>,
    /// The version of the API that it says it is of, likewise.
    version: Option<String>,
    pod: PodFacts,
}

/// An answer that is not the pod that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotThePod {
    /// It says that it is something else.
    #[error("the answer is a {0:?} and no Pod")]
    Kind(String),
    /// It does not say what it is.
    #[error("the answer has no kind, so it is no Pod")]
    NoKind,
    /// It says that it is of another version of the API.
    #[error("the answer has the apiVersion {0:?}, and a Pod has {VERSION:?}")]
    Version(String),
    /// It does not say of which version of the API it is.
    #[error("the answer has no apiVersion, so it is no Pod")]
    NoVersion,
    /// It has another name or namespace, or none.
    #[error("the answer has the {field} {found:?}, and {wanted:?} was asked for")]
    Name {
        /// `namespace` or `name`: the first of both that is another.
        field: &'static str,
        /// What the answer has there; empty where it has nothing.
        found: String,
        /// What it is to be.
        wanted: String,
    },
    /// One of the same name was here before, or follows.
    #[error("it knows another pod of this name, with the id {found} and not {wanted}")]
    Id {
        /// The `metadata.uid` of the answer; empty where it has none.
        found: String,
        /// What it is to be.
        wanted: String,
    },
    /// Nobody asked for an id, and no pod is without one.
    #[error("the answer has no metadata.uid, which every pod has")]
    NoId,
    /// No container is without a name.
    #[error("the answer has a container without a name, which every container has")]
    Nameless,
    /// No pod is without containers.
    #[error("the answer tells no containers, which every pod has")]
    NoContainers,
}

impl Answer {
    /// The same answer of somebody who says by other means that it is a pod.
    #[must_use]
    pub fn of_a_pod(self) -> Self {
        let Self { kind, version, pod } = self;
        let or = |text: Option<String>, usual: &str| text.or_else(|| Some(usual.to_owned()));
        Self { kind: or(kind, POD), version: or(version, VERSION), pod }
    }

    /// The pod, if it is the one that was asked for, whole: what is missing is not equal. An id
    /// that nobody asked for may be any, but it has one.
    ///
    /// # Errors
    /// What tells it from that pod.
    pub fn about(self, wanted: &PodFacts) -> Result<PodFacts, NotThePod> {
        let Self { kind, version, pod } = self;
        match kind {
            None => return Err(NotThePod::NoKind),
            Some(kind) if kind != POD => return Err(NotThePod::Kind(kind)),
            Some(_) => {}
        }
        match version {
            None => return Err(NotThePod::NoVersion),
            Some(version) if version != VERSION => return Err(NotThePod::Version(version)),
            Some(_) => {}
        }
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        for (field, found, wanted) in
            [("namespace", &pod.namespace, &wanted.namespace), ("name", &pod.name, &wanted.name)]
        {
            if found.is_none() || found != wanted {
                return Err(NotThePod::Name { field, found: text(found), wanted: text(wanted) });
            }
        }
        let mirrored = |id: &String| pod.uid.is_some() && pod.annotation(MIRROR) == Some(id);
        if let Some(id) = &wanted.uid
            && pod.uid.as_ref() != Some(id)
            && !mirrored(id)
        {
            return Err(NotThePod::Id { found: text(&pod.uid), wanted: id.clone() });
        }
        if pod.uid.as_ref().is_none_or(String::is_empty) {
            return Err(NotThePod::NoId);
        }
        if !pod.containers.iter().flatten().any(|c| !c.init) {
            return Err(NotThePod::NoContainers);
        }
        if pod.containers.iter().flatten().any(|c| c.name.is_empty()) {
            return Err(NotThePod::Nameless);
        }
        Ok(pod)
    }
}

impl From<Manifest> for Answer {
    fn from(mut manifest: Manifest) -> Self {
        let (kind, version) = (manifest.kind.take(), manifest.api_version.take());
        Self { kind, version, pod: manifest.into() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::pod::Container;

    /// Verify that only the pod that was asked for, whole, is an answer.
    #[test]
    fn what_is_not_the_pod_that_was_asked_for_tells_nothing() {
        let wanted = PodFacts {
            name: Some("a".to_owned()),
            namespace: Some("b".to_owned()),
            uid: Some("c".to_owned()),
            ..PodFacts::default()
        };
        let answer = |text: &str| serde_json::from_str::<Answer>(text).unwrap();
        let metadata = r#""metadata":{"name":"a","namespace":"b","uid":"c"}"#;
        let spec = r#""spec":{"containers":[{"name":"app"}]}"#;
        let whole = format!(r#"{{"apiVersion":"v1","kind":"Pod",{metadata},{spec}}}"#);
        assert_eq!(answer(&whole).about(&wanted).unwrap().containers.unwrap()[0].name, "app");
        let other = |from: &str, to: &str| {
            assert!(whole.contains(from), "{from}");
            answer(&whole.replace(from, to)).about(&wanted).unwrap_err()
        };
        for (from, to, named) in [
            (r#""kind":"Pod","#, "", "no kind"),
            (r#""Pod""#, r#""ConfigMap""#, "ConfigMap"),
            (r#""Pod""#, "null", "the answer is a \"\""),
            (r#""apiVersion":"v1","#, "", "no apiVersion"),
            (r#""v1""#, r#""v2""#, "\"v2\""),
            (r#""v1""#, "null", "apiVersion \"\""),
            (r#""name":"a","#, "", "name"),
            (r#""name":"a""#, r#""name":"z""#, "\"z\""),
            (r#""namespace":"b","#, "", "namespace"),
            (r#""namespace":"b""#, r#""namespace":"kube-system""#, "kube-system"),
            (r#","uid":"c""#, "", "another pod"),
            (r#""uid":"c""#, r#""uid":"d""#, "another pod"),
            (&format!(",{spec}"), "", "no containers"),
            (r#"{"name":"app"}"#, "", "no containers"),
            (r#"{"name":"app"}"#, r#"{"name":"app"},{"name":""}"#, "without a name"),
            (r#""containers""#, r#""initContainers""#, "no containers"),
        ] {
            let error = other(from, to).to_string();
            assert!(error.contains(named), "{from} {to}: {error}");
        }
        let array = format!(r#"["v1","Pod",{},{}]"#, &metadata[11..], &spec[7..]);
        for no_object in ["[]", &array] {
            assert!(serde_json::from_str::<Answer>(no_object).is_err(), "{no_object}");
        }
        for text in ["{}", r#"{"kind":"Status","status":"Failure","code":503}"#] {
            assert!(answer(text).about(&wanted).is_err(), "{text}");
            assert!(answer(text).of_a_pod().about(&wanted).is_err(), "{text}");
        }
        // Who says by other means that it is a pod need not say it again, but nothing else either.
        let without = whole.replace(r#""apiVersion":"v1","kind":"Pod","#, "");
        assert!(answer(&without).of_a_pod().about(&wanted).is_ok());
        for null in [whole.replace(r#""Pod""#, "null"), whole.replace(r#""v1""#, "null")] {
            assert!(answer(&null).of_a_pod().about(&wanted).is_err(), "{null}");
        }
        // Whoever doesn't know the id takes any, but none is no pod's.
        let by_name = PodFacts { uid: None, ..wanted.clone() };
        assert!(answer(&whole).about(&by_name).is_ok());
        for none in ["", r#","uid":"""#, r#","uid":null"#] {
            let nameless = whole.replace(r#","uid":"c""#, none);
            assert_eq!(answer(&nameless).about(&by_name), Err(NotThePod::NoId), "{nameless}");
        }
        let odd = answer(&whole.replace("Pod", "PodList")).of_a_pod().about(&wanted);
        assert_eq!(odd, Err(NotThePod::Kind("PodList".to_owned())));
    }

    #[test]
    fn a_static_pod_is_known_by_its_mirror() {
        let named = |uid: Option<&str>| PodFacts {
            name: Some("a".to_owned()),
            namespace: Some("b".to_owned()),
            uid: uid.map(str::to_owned),
            ..PodFacts::default()
        };
        let mirror = Answer {
            kind: Some(POD.to_owned()),
            version: Some(VERSION.to_owned()),
            pod: PodFacts {
                annotations: Some(BTreeMap::from([(MIRROR.to_owned(), "hash".to_owned())])),
                containers: Some(vec![Container { name: "c".to_owned(), ..Container::default() }]),
                ..named(Some("c"))
            },
        };
        for (asked, known) in
            [(Some("hash"), true), (Some("c"), true), (None, true), (Some("x"), false)]
        {
            assert_eq!(mirror.clone().about(&named(asked)).is_ok(), known, "{asked:?}");
        }
    }
}
