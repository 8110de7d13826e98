//! `millrace diff`

use anyhow::Result;
use millrace_core::sim::compare::{compare, difference_json, difference_text};
use millrace_core::value::Family;
use millrace_host::progress::Progress;

use super::deep::deep;
use super::output::{print_json, print_painted, warn};
use super::{rules, saved};
use crate::cli::own::Diff;
use crate::exit::Exit;
use crate::paint;

pub(crate) fn diff(diff: &Diff) -> Result<Exit> {
    let before = rules::of_word(&diff.before, &diff.sources)?;
    let after = rules::of_word(&diff.after, &diff.sources)?;
    // What is compared is rules: a namespace's interfaces and routes hold for both sides.
    let (first, second) = match (before.live, after.live) {
        (false, true) => {
            (after.namespace.with_marks_of(&before.namespace), after.namespace.clone())
        }
        _ => (before.namespace.clone(), before.namespace.with_marks_of(&after.namespace)),
    };
    let progress = Progress::start("diff", None);
    let mut found = deep(|| compare((&before.program, &first), (&after.program, &second)))?;
    drop(progress);
    // Where one side alone has rules of a family, what differs can't be told.
    let neither = |family: &Family| after.program.untold().contains(family);
    let untold: Vec<Family> = before.program.untold().iter().copied().filter(neither).collect();
    found.traffic.retain(|class| !untold.contains(&class.example.family()));
    found.untold.retain(|class| !untold.contains(&class.example.family()));
    found.untold_packets.retain(|packets| !untold.contains(&packets.class.family()));
    found.packets.retain(|packets| !untold.contains(&packets.class.family()));
    saved::untold(&untold).for_each(|text| warn(&text));
    if diff.json {
        print_json(&difference_json(&before.program, &after.program, &found))?;
    } else {
        let text = difference_text(&before.program, &after.program, &found);
        print_painted(&text, diff.color, paint::diff)?;
    }
    Ok(if found.is_none() { Exit::Ok } else { Exit::Differs })
}
