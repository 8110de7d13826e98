//! Counting the processes of a tree, from strace's output.

use std::collections::BTreeMap;

/// What strace has to trace; `?` passes over calls that the architecture does not have.
pub const TRACED: &str = "trace=?fork,?vfork,clone,?clone3";

/// How many processes were started, threads not counted, in the output of `strace -f -o FILE`.
pub fn started(trace: &str) -> usize {
    // A call that another process interrupts is printed in two parts; flags are in the first,
    // the result is in the second.
    let mut unfinished: BTreeMap<&str, &str> = BTreeMap::new();
    let mut count = 0;
    for line in trace.lines() {
        let Some((pid, call)) = line.split_once(' ') else { continue };
        let call = call.trim_start();
        if let Some(first) = call.strip_suffix("<unfinished ...>") {
            unfinished.insert(pid, first);
            continue;
        }
        let first = if call.starts_with("<... ") { unfinished.remove(pid) } else { None };
        let is_thread = call.contains("CLONE_THREAD")
            || first.is_some_and(|first| first.contains("CLONE_THREAD"));
        if !is_thread && makes_child(call) {
            count += 1;
        }
    }
    count
}

/// Is it a call that succeeded, so that its result is the child's process id?
fn makes_child(call: &str) -> bool {
    let name = call.strip_prefix("<... ").unwrap_or(call);
    let traced = ["fork", "vfork", "clone"].iter().any(|traced| name.starts_with(traced));
    let result = call.rsplit_once("= ").map(|(_, result)| result);
    traced && result.is_some_and(|result| result.trim_end().parse::<u32>().is_ok_and(|id| id > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_and_interrupted_calls_count_once() {
        let trace = "\
100 clone3({flags=CLONE_VM|CLONE_VFORK, exit_signal=SIGCHLD, stack_size=0x9000}, 88) = 101
100 vfork( <unfinished ...>
102 clone(child_stack=NULL, flags=CLONE_CHILD_CLEARTID|SIGCHLD, child_tidptr=0x7f) = 103
100 <... vfork resumed>)                = 102
103 clone(child_stack=NULL, flags=SIGCHLD <unfinished ...>
103 <... clone resumed>, child_tidptr=0x7f28) = 104
";
        assert_eq!(started(trace), 4);
    }

    #[test]
    fn threads_and_failures_do_not_count() {
        let trace = "\
100 clone3({flags=CLONE_VM|CLONE_THREAD|CLONE_SETTLS, stack=0x7f}, 88 <unfinished ...>
101 rseq(0x7f, 0x20, 0, 0x53053053)     = 0
100 <... clone3 resumed> => {parent_tid=[101]}, 88) = 101
100 clone3({flags=CLONE_VM|CLONE_THREAD, stack=0x7f} => {parent_tid=[102]}, 88) = 102
100 fork()                              = -1 EAGAIN (Resource temporarily unavailable)
100 clone(child_stack=NULL, flags=SIGCHLD) = ? ERESTARTNOINTR (To be restarted)
100 +++ exited with 0 +++
";
        assert_eq!(started(trace), 0);
    }
}
