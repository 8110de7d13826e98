//! `CNI_ARGS` (CNI specification, section 2, «Parameters»).

use millrace_core::pod::PodFacts;

/// What `CNI_ARGS` says of the pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodArgs {
    /// `K8S_POD_NAME`
    pub name: Option<String>,
    /// `K8S_POD_NAMESPACE`
    pub namespace: Option<String>,
    /// `K8S_POD_UID`
    pub uid: Option<String>,
}

/// Why `CNI_ARGS` is refused, which the runtime gets with code 4.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    /// An item is no pair.
    #[error("CNI_ARGS: {0:?} is not KEY=VALUE; pairs are separated by ;")]
    Pair(String),
    /// It is no text, so that a pod that is named in it would be taken for another or for none.
    #[error("CNI_ARGS is {0:?}, which is not UTF-8")]
    NotText(String),
    /// A key is not known here, and was not to be passed over.
    #[error("CNI_ARGS: {0:?} is not known here; with IgnoreUnknown=1 it is passed over")]
    Unknown(String),
}

impl From<PodArgs> for PodFacts {
    fn from(args: PodArgs) -> Self {
        let PodArgs { name, namespace, uid } = args;
        Self { name, namespace, uid, ..Self::default() }
    }
}

impl PodArgs {
    /// Read `KEY=VALUE` pairs with `;` between; keys of other plugins take `IgnoreUnknown`.
    ///
    /// # Errors
    /// When it is no text, an item is no pair, or is not known and `IgnoreUnknown` is not set.
    pub fn parse(text: &str) -> Result<Self, ArgsError> {
        // What stands for bytes that are none, where the environment was read.
        if text.contains(char::REPLACEMENT_CHARACTER) {
            return Err(ArgsError::NotText(text.to_owned()));
        }
        let mut args = Self::default();
        let mut unknown = None;
        let mut ignore = false;
        for item in text.split(';').filter(|item| !item.is_empty()) {
            let pair = item.split_once('=').filter(|(_, value)| !value.contains('='));
            let (key, value) = pair.ok_or_else(|| ArgsError::Pair(item.to_owned()))?;
            let value = value.to_owned();
            match key {
                "IgnoreUnknown" => ignore = ["1", "true", "TRUE", "True"].contains(&value.as_str()),
                "K8S_POD_NAME" => args.name = Some(value),
                "K8S_POD_NAMESPACE" => args.namespace = Some(value),
                "K8S_POD_UID" => args.uid = Some(value).filter(|uid| !uid.is_empty()),
                "K8S_POD_INFRA_CONTAINER_ID" | "IP" | "MAC" => {}
                other => unknown = unknown.or_else(|| Some(other.to_owned())),
            }
        }
        match unknown {
            Some(key) if !ignore => Err(ArgsError::Unknown(key)),
            _ => Ok(args),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_named_in_any_order() {
        let args = PodArgs::parse(
            "K8S_POD_UID=c;IgnoreUnknown=1;K8S_POD_NAME=a;Other=x;K8S_POD_NAMESPACE=b;\
             K8S_POD_INFRA_CONTAINER_ID=d",
        )
        .unwrap();
        assert_eq!(args.name.as_deref(), Some("a"));
        assert_eq!(args.namespace.as_deref(), Some("b"));
        assert_eq!(args.uid.as_deref(), Some("c"));
        assert_eq!(PodArgs::parse("").unwrap(), PodArgs::default());
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        assert_eq!(PodArgs::parse("Other=x"), Err(ArgsError::Unknown("Other".to_owned())));
        for bad in ["K8S_POD_NAME", "a=b=c;IgnoreUnknown=1"] {
            assert!(matches!(PodArgs::parse(bad), Err(ArgsError::Pair(_))), "{bad}");
        }
        assert!(PodArgs::parse("Other=x;IgnoreUnknown=0").is_err());
    }
}
