//! The command line of `consul connect redirect-traffic`.

use std::ffi::OsString;

use millrace_core::dialect::consul::Consul;

use super::goflag;
use super::istio::NotTyped;

/// Read the words behind `consul`: the sub-command that there is, and its flags by their names.
pub(crate) fn read(words: Vec<OsString>) -> Result<Vec<(String, String)>, NotTyped> {
    let mut words = words.into_iter();
    let commands = [words.next(), words.next()].map(Option::unwrap_or_default);
    let is_help = |word: &OsString| word.is_empty() || word == "-h" || word == "--help";
    match commands.each_ref().map(|word| word.to_str().unwrap_or("\u{fffd}")) {
        ["connect", "redirect-traffic"] => match goflag::read::<Consul>(words.collect()) {
            Err(NotTyped::Help(_)) => Err(NotTyped::Help(help())),
            read => read,
        },
        ["connect", _] if is_help(&commands[1]) => Err(NotTyped::Help(help())),
        [_, ""] if is_help(&commands[0]) => Err(NotTyped::Help(help())),
        _ => {
            let [first, second] = commands.each_ref().map(|word| word.display());
            Err(NotTyped::Bad(format!(
                "consul {first} {second}: of Consul's commands there is only connect redirect-traffic"
            )))
        }
    }
}

fn help() -> String {
    let mut help =
        "Set up the rules that divert a pod's traffic into its proxy, as consul connect \
                    redirect-traffic does\n\nUsage: consul connect redirect-traffic [FLAGS]\n"
            .to_owned();
    help.push_str(&goflag::help::<Consul>("Flags of Consul"));
    help.push_str(
        "\nExample:\n  millrace consul connect redirect-traffic -proxy-uid 5995 -proxy-inbound-port \
         20000\n\nExit codes: 0 done or nothing to do; 1 the command line can't be read, a bad \
         configuration, or something failed and the previous rules were restored; 4 a lock was \
         held for longer than -wait.\n",
    );
    help
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(line: &str) -> Result<Vec<(String, String)>, NotTyped> {
        read(line.split(' ').map(OsString::from).collect())
    }

    fn refused(line: &str) -> String {
        match typed(line) {
            Err(NotTyped::Bad(text)) => text,
            other => panic!("{line}: {other:?}"),
        }
    }

    /// Verify every spelling that Go's package takes, and that a flag may be repeated.
    #[test]
    fn flags_of_go() {
        let uid = [("proxy-uid".to_owned(), "1".to_owned())];
        for flags in ["-proxy-uid 1", "-proxy-uid=1", "--proxy-uid 1", "--proxy-uid=1"] {
            assert_eq!(typed(&format!("connect redirect-traffic {flags}")).unwrap(), uid);
        }
        let line = "connect redirect-traffic -exclude-uid=1 -dry-run -exclude-uid 2 -stale=false";
        let names: Vec<String> = typed(line).unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["exclude-uid", "dry-run", "exclude-uid", "stale"]);
        assert_eq!(typed("connect redirect-traffic -token=a=b").unwrap()[0].1, "a=b");
    }

    /// Verify that what is no flag is an error that names it, also where Go would stop to read.
    #[test]
    fn what_is_not_known() {
        let flag = |words| refused(&format!("connect redirect-traffic {words}"));
        assert_eq!(flag("-proxy-gid 1"), "flag provided but not defined: -proxy-gid");
        assert_eq!(flag("-proxy-uid"), "flag needs an argument: -proxy-uid");
        assert_eq!(flag("word -proxy-uid 1"), "\"word\" is no flag: there are only flags here");
        assert_eq!(flag("-- x"), "\"--\" is no flag: there are only flags here");
        assert!(refused("connect envoy").starts_with("consul connect envoy: of Consul's"));
        assert!(refused("agent -dev").starts_with("consul agent -dev: of Consul's"));
        assert!(refused("kv get -h").starts_with("consul kv get: of Consul's"));
    }

    /// Verify that help is given where it is asked for.
    #[test]
    fn help_is_given() {
        for line in ["-h", "--help", "connect", "connect --help", "connect redirect-traffic -h"] {
            assert!(
                matches!(typed(line), Err(NotTyped::Help(text)) if text.contains("-proxy-uid"))
            );
        }
        assert!(matches!(read(Vec::new()), Err(NotTyped::Help(_))));
    }
}
