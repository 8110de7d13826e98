//! What `iptables-legacy-save` leaves out: that a rule asks for none of all ports, or for no
//! interface at all. Such a rule matches nothing, and its text is that of one that matches all.

use super::entry::{HEADER, layout, out_of_all_interfaces};
use super::{Bytes, KernelTable, Unknown, hook_at};
use crate::iptables::{DumpRule, TableDump};

/// An option that a rule has and its text has not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// The rule's chain, a builtin one by its hook in capitals.
    pub chain: String,
    /// Its place in the chain, counted from 0.
    pub rule: usize,
    /// The extension that the option belongs to, if it belongs to one.
    pub module: Option<&'static str>,
    /// The option with its value, as `! --sport 0:65535`.
    pub option: &'static str,
}

/// What is left out of the text of a table's rules. Extensions that are not known don't matter.
///
/// # Errors
/// When the table's structs don't fit together.
pub fn left_out(table: &KernelTable<'_>) -> Result<Vec<LeftOut>, Unknown> {
    let layout = layout(table.family);
    let mut found = Vec::new();
    let mut chain: Option<String> = None;
    let (mut at, mut rule) = (0, 0);
    while at < table.entries.len() {
        let bytes = Bytes(table.entries).from(at)?;
        let next = usize::from(bytes.u16(layout.offsets + 2)?);
        let target_at = usize::from(bytes.u16(layout.offsets)?);
        if next < layout.size || target_at < layout.size {
            return Err(Unknown::Chains);
        }
        let offset = u32::try_from(at).map_err(|_e| Unknown::Chains)?;
        at += next;
        let entry = Bytes(bytes.slice(0, next)?);
        let target = entry.from(target_at)?;
        if target.text(2, 29)? == "ERROR" {
            (chain, rule) = (Some(target.text(HEADER, 30)?.to_owned()), 0);
            continue;
        }
        if let Some(hook) = hook_at(&table.hook_entry, offset) {
            (chain, rule) = (Some(hook.as_str().to_owned()), 0);
        }
        let chain = chain.as_ref().ok_or(Unknown::Chains)?;
        let mut options = out_of_all_interfaces(&layout, entry)?;
        let mut extension_at = layout.size;
        while extension_at < target_at {
            let extension = entry.from(extension_at)?;
            let size = usize::from(extension.u16(0)?);
            if size < HEADER {
                return Err(Unknown::Chains);
            }
            let data = Bytes(extension.slice(HEADER, size - HEADER)?);
            options.extend(out_of_all_ports(extension.text(2, 29)?, data)?);
            extension_at += size;
        }
        let (at, of) = (rule, chain.clone());
        found.extend(options.into_iter().map(|(module, option)| LeftOut {
            chain: of.clone(),
            rule: at,
            module,
            option,
        }));
        rule += 1;
    }
    Ok(found)
}

/// An option, and the extension that it belongs to.
pub(super) type Left = (Option<&'static str>, &'static str);

/// `struct xt_tcp` and `struct xt_udp`: which of the ports must be none of all.
fn out_of_all_ports(name: &str, data: Bytes<'_>) -> Result<Vec<Left>, Unknown> {
    let (module, inverted) = match name {
        "tcp" => ("tcp", data.u8(11)?),
        "udp" => ("udp", data.u8(8)?),
        _ => return Ok(Vec::new()),
    };
    let mut found = Vec::new();
    for (at, bit, option) in [(0, 1, "! --sport 0:65535"), (4, 2, "! --dport 0:65535")] {
        if inverted & bit != 0 && (data.u16(at)?, data.u16(at + 2)?) == (0, u16::MAX) {
            found.push((Some(module), option));
        }
    }
    Ok(found)
}

impl TableDump {
    /// Give rules back what their text leaves out.
    pub fn put_back(&mut self, left_out: &[LeftOut]) {
        for LeftOut { chain, rule, module, option } in left_out {
            let chain = self.chains.iter_mut().find(|own| own.name == *chain);
            let Some(rule) = chain.and_then(|chain| chain.rules.get_mut(*rule)) else { continue };
            if rule.text.contains(option) {
                continue;
            }
            // A comment may say so as well.
            let behind = module.and_then(|module| {
                let name = format!("-m {module}");
                let plain = rule.text.split('"').next()?;
                Some(plain.find(&format!("{name} "))? + name.len())
            });
            let text = match behind {
                Some(at) => format!("{} {option}{}", &rule.text[..at], &rule.text[at..]),
                None => format!("{option} {}", rule.text),
            };
            *rule = DumpRule::from_text(&text, rule.counters);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iptables::Dump;

    #[test]
    fn what_is_left_out_is_put_where_it_was() {
        let text = "*filter\n:OUTPUT ACCEPT\n-A OUTPUT -p tcp -m tcp -j DROP\n\
                    -A OUTPUT -j LOG\nCOMMIT\n";
        let mut dump = Dump::parse(text).unwrap();
        let left =
            |rule, module, option| LeftOut { chain: "OUTPUT".to_owned(), rule, module, option };
        dump.tables[0].put_back(&[
            left(0, Some("tcp"), "! --dport 0:65535"),
            left(1, None, "! -o +"),
            left(2, None, "! -o +"),
        ]);
        let texts: Vec<&str> =
            dump.tables[0].chains[0].rules.iter().map(|rule| rule.text.as_str()).collect();
        assert_eq!(texts[0], "-p tcp -m tcp ! --dport 0:65535 -j DROP");
        assert_eq!(texts[1], "! -o + -j LOG");
    }
}
