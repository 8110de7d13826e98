//! Rules of iptables-nft that are not understood, in the words of iptables' own program.

use super::Dump;

/// What a program that does not read past newer expressions says of them.
const NEWER: [&str; 5] = ["--sport ", "--dport ", "--mark ", "--tcp-flags ", "--icmp"];

impl Dump {
    /// Take the text of rules that are not understood from what iptables' own program printed of the same
    /// tables. What it read past, or what has changed in the meantime, stays as it was.
    pub fn put_in_words(&mut self, printed: &Self) {
        let chains = self.tables.iter_mut().flat_map(|table| {
            let same = printed.table(&table.name);
            table
                .chains
                .iter_mut()
                .map(move |chain| (same.and_then(|t| t.chain(&chain.name)), chain))
        });
        for (same, chain) in chains {
            let Some(same) = same.filter(|c| c.rules.len() == chain.rules.len()) else { continue };
            let rules = chain.rules.iter_mut().zip(&same.rules);
            for (rule, words) in rules.filter(|(rule, _)| rule.rule.is_err()) {
                let newer = rule.kernel.as_ref().is_some_and(|kernel| kernel.newer);
                if !newer || NEWER.iter().any(|option| words.text.contains(option)) {
                    rule.text.clone_from(&words.text);
                    rule.rule.clone_from(&words.rule);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iptables::{KernelRule, UnknownRule};

    /// A dump with one rule that was asked of the kernel and not understood.
    fn unclear(newer: bool) -> Dump {
        let mut dump = Dump::parse("*nat\n-A OUTPUT -m statistic -j RETURN\nCOMMIT\n").unwrap();
        let rule = &mut dump.tables[0].chains[0].rules[0];
        rule.rule = Err(UnknownRule("statistic".to_owned()));
        rule.text = "[statistic] -j RETURN".to_owned();
        rule.kernel = Some(KernelRule { handle: 7, attributes: Vec::new(), newer });
        dump
    }

    #[test]
    fn words_are_taken_where_they_say_all() {
        let port = "-p tcp -m tcp --dport 80 -m statistic --mode random -j RETURN";
        let past = "-p tcp -m statistic --mode random -j RETURN";
        for (newer, words, taken) in [
            (false, past, true),
            (true, port, true),
            // A program that reads past the port of a rule says something else than is there.
            (true, past, false),
        ] {
            let printed = Dump::parse(&format!("*nat\n-A OUTPUT {words}\nCOMMIT\n")).unwrap();
            let mut dump = unclear(newer);
            dump.put_in_words(&printed);
            let rule = &dump.tables[0].chains[0].rules[0];
            assert_eq!(rule.text == words, taken, "{}", rule.text);
            assert_eq!(rule.kernel.as_ref().map(|kernel| kernel.handle), Some(7));
        }
        let more = format!("*nat\n-A OUTPUT {past}\n-A OUTPUT {past}\nCOMMIT\n");
        let mut dump = unclear(false);
        dump.put_in_words(&Dump::parse(&more).unwrap());
        assert_eq!(dump, unclear(false), "somebody has changed it since");
    }
}
