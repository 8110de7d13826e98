//! `millrace cleanup`

use anyhow::{Result, bail};
use millrace_core::dialect::MARKS;
use millrace_host::capture::{Farewell, Left, leave};
use millrace_host::ebpf::{Attached, DEFAULT_FOLDER};
use millrace_host::exec;

use super::ebpf::elsewhere_is;
use super::namespace;
use super::output::print_outcome;
use crate::cli::own::Cleanup;
use crate::exit::Exit;

pub(crate) fn cleanup(cleanup: &Cleanup) -> Result<Exit> {
    let common = &cleanup.common;
    let (mut session, facts) = namespace::open(&common.place)?;
    let entered = namespace::entered(&common.place)?;
    let folder = cleanup.ebpf.as_ref().map_or(DEFAULT_FOLDER.as_ref(), |ebpf| &*ebpf.folder);
    let Left { enrolled, outcome, beyond } = leave(
        &mut session,
        &Farewell {
            folder: Some(folder),
            entered: entered.as_ref(),
            chosen: None,
            marks: MARKS.to_vec(),
            groups: &facts.groups,
            dry_run: common.dry_run,
            wait: common.wait,
            exec: exec::Options::default(),
        },
    )?;
    let nothing = if beyond == Attached::No {
        "nothing to do: nothing of Millrace or a mesh's tool is here"
    } else {
        "nothing to do: no rules of Millrace or a mesh's tool are here"
    };
    if let Some(mut outcome) = outcome {
        // By which backend no rules are written does not matter.
        outcome.choice = None;
        print_outcome(&outcome, matches!(enrolled, Ok(true)), nothing, common)?;
    }
    enrolled?;
    match elsewhere_is(beyond, folder) {
        Some(why) => bail!("{why}; what belongs to that capture is left as it is"),
        None => Ok(Exit::Ok),
    }
}
