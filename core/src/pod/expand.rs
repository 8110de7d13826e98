//! `$(NAME)` in commands and arguments, as the kubelet replaces it.

use super::Container;

/// A variable's value is not in the manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("variable {0} has its value from elsewhere, which the manifest does not tell")]
pub struct Elsewhere(pub String);

/// A word of a container's command or arguments with its references to variables replaced. What is no
/// variable of the container stays as it is, and `$$` is one `$` (Kubernetes API reference,
/// `Container.args`).
///
/// # Errors
/// When a variable is needed whose value is not known.
pub fn expand(text: &str, container: &Container) -> Result<String, Elsewhere> {
    let mut done = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('$') {
        done.push_str(before);
        if let Some(behind) = behind.strip_prefix('$') {
            done.push('$');
            rest = behind;
        } else if let Some((name, behind)) =
            behind.strip_prefix('(').and_then(|inner| inner.split_once(')'))
        {
            done.push_str(&value(name, container)?);
            rest = behind;
        } else {
            done.push('$');
            rest = behind;
        }
    }
    done.push_str(rest);
    Ok(done)
}

fn value(name: &str, container: &Container) -> Result<String, Elsewhere> {
    match container.env.get(name) {
        // It may refer to others in turn.
        Some(value) if value.contains('$') => Err(Elsewhere(name.to_owned())),
        Some(value) => Ok(value.clone()),
        None if container.is_elsewhere(name) => Err(Elsewhere(name.to_owned())),
        None => Ok(format!("$({name})")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn references_are_replaced_as_the_kubelet_does() {
        let container = Container {
            env: BTreeMap::from([
                ("A".to_owned(), "1".to_owned()),
                ("B".to_owned(), "$(A)".to_owned()),
            ]),
            env_elsewhere: vec!["C".to_owned(), "D_*".to_owned()],
            ..Container::default()
        };
        for (text, wanted) in [
            ("plain", "plain"),
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$$(A)", "$(A)"),
            ("$(NONE)", "$(NONE)"),
            ("$A $( $(A", "$A $( $(A"),
            ("$$$(A)$", "$1$"),
        ] {
            assert_eq!(expand(text, &container).as_deref(), Ok(wanted), "{text}");
        }
        for (text, name) in [("$(B)", "B"), ("a$(C)", "C"), ("$(D_1)", "D_1")] {
            assert_eq!(expand(text, &container), Err(Elsewhere(name.to_owned())), "{text}");
        }
    }
}
