//! What a proof goes around: somebody outside is reached over a link that is made for it, and rules
//! may treat what comes by the pod's own interfaces in another way.

use super::{Check, Maker};
use crate::sim::report::fate_text;
use crate::sim::{Answer, Fate, Interface, Namespace, Program, Question};
use crate::value::Family;

/// What a proof over `link` does not tell of inbound connections, a sentence each: where the rules of
/// the namespace give another end to a connection that comes by an interface of the pod.
pub fn detours(
    program: &Program,
    namespace: &Namespace,
    link: &str,
    checks: &[&Check],
) -> Vec<String> {
    let mut found = Vec::new();
    for check in checks.iter().filter(|check| check.maker == Maker::Outside) {
        let Some(from) = check.source else { continue };
        let by = |interface: &str| {
            let mut question = Question::inward(from, check.protocol, check.to);
            question.interface = Some(interface.to_owned());
            program.answer(namespace, &question)
        };
        let family = Family::of(check.to.ip());
        let of_pod = |interface: &&Interface| {
            interface.name != link
                && interface.name != "lo"
                && interface.addresses.iter().any(|a| a.family() == family)
        };
        let tried = by(link);
        for interface in namespace.interfaces().filter(of_pod) {
            let real = by(&interface.name);
            if !is_same(&tried.fate, &real.fate) {
                found.push(sentence(program, check, link, &interface.name, &real));
            }
        }
    }
    found
}

/// Whether both are one end: the address that a redirect leads to is the interface's.
fn is_same(tried: &Fate, real: &Fate) -> bool {
    match (tried, real) {
        (
            Fate::Delivered { port, how, original, .. },
            Fate::Delivered { port: other, how: by, original: of, .. },
        ) => (port, how, original) == (other, by, of),
        _ => tried == real,
    }
}

fn sentence(
    program: &Program,
    check: &Check,
    link: &str,
    interface: &str,
    real: &Answer,
) -> String {
    let mut text = format!(
        "{} to {}/{} was tried over {link}; by {interface}: {}",
        check.proves,
        check.to,
        check.protocol,
        fate_text(&real.fate)
    );
    if let Some(rule) = real.decided.last() {
        text.push_str(&format!(" ({})", program.line(*rule)));
    }
    text
}
