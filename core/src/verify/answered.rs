//! Whether captured connections come about: what the proxy says in return has to come back as well.

use crate::policy::CapturePolicy;
use crate::sim::report::{Words, class_words};
use crate::sim::{Event, Explanation, Met, Namespace, Outcome, Program, Reply, partition};

/// How many kinds of connections are told one by one.
const TOLD: usize = 8;

/// Connections that reach the proxy as a policy has it, and whose answer does not come back as it would
/// by the policy's rules alone; an example of each kind is followed.
pub fn unanswered(
    policy: &CapturePolicy,
    wanted: (&Program, &Namespace),
    real: (&Program, &Namespace),
) -> Vec<String> {
    let [wanted, real] = [wanted, real].map(|(program, namespace)| {
        // Rules may ask whose socket answers.
        (program, namespace.clone().with_proxy(policy))
    });
    let mut reported = Vec::new();
    let mut more = 0;
    for class in partition(wanted.0, &wanted.1) {
        if !matches!(class.answer.outcome, Outcome::Captured { .. }) {
            continue;
        }
        let question = &class.example;
        let found = real.0.explain(&real.1, question);
        let as_wanted = found.answer.outcome == class.answer.outcome;
        let Some(why) = silence(&found).filter(|_| as_wanted) else { continue };
        if silence(&wanted.0.explain(&wanted.1, question)).is_some() {
            continue;
        }
        if reported.len() == TOLD {
            more += 1;
            continue;
        }
        let Words { who, to } = class_words(&class);
        let matched = found.back.iter().rev().find_map(|event| match event {
            Event::Rule { rule, met: Met::Matched, .. } => Some(real.0.line(*rule)),
            _ => None,
        });
        let by = matched.unwrap_or_else(|| "no rule".to_owned());
        reported.push(format!(
            "{} {who}, to {to}: {}, and the answer does not come back as it should: {why}; the last rule \
             that it met: {by}; for example {question}",
            class.family(),
            class.answer.outcome
        ));
    }
    reported.extend((more > 0).then(|| format!("and so with {more} more kinds of connections")));
    reported
}

/// Why no connection comes about, if that is so.
fn silence(found: &Explanation) -> Option<&str> {
    match found.reply.as_ref()? {
        Reply::Lost { why } | Reply::Broken { why } => Some(why),
        Reply::Arrives | Reply::Unknown { .. } => None,
    }
}
