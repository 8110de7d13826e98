//! Rules of older releases of istio-iptables: whole ones are whole, and what lacks a rule is not.

use millrace_core::iptables::Dump;
use millrace_core::observed::{Holding, IpRule, Observed, Route, Variant};
use millrace_core::status::{State, Status, judge, read_back};
use millrace_core::value::{Family, Groups};

/// Chains that every release makes, with what comes in.
const CHAINS: &str = "*nat\n:ISTIO_INBOUND - [0:0]\n:ISTIO_IN_REDIRECT - [0:0]\n:ISTIO_OUTPUT - [0:0]\n\
    :ISTIO_REDIRECT - [0:0]\n-A PREROUTING -p tcp -j ISTIO_INBOUND\n\
    -A ISTIO_INBOUND -p tcp -m tcp --dport 15008 -j RETURN\n\
    -A ISTIO_INBOUND -p tcp -m tcp --dport 15090 -j RETURN\n\
    -A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT\n\
    -A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006\n\
    -A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001\n-A OUTPUT -p tcp -j ISTIO_OUTPUT\n";

/// The rules that know the proxy; `ports` are those that its calls to its own pod spare, for its user
/// and its group.
fn identity(ports: [&str; 2], dns: bool) -> String {
    let tcp = if dns { "-p tcp -m tcp ! --dport 53 " } else { "" };
    let of = |id: &str, ports: &str| {
        format!(
            "-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo {ports}-m owner --{id}-owner 1337 -j \
             ISTIO_IN_REDIRECT\n-A ISTIO_OUTPUT -o lo {tcp}-m owner ! --{id}-owner 1337 -j RETURN\n\
             -A ISTIO_OUTPUT -m owner --{id}-owner 1337 -j RETURN\n"
        )
    };
    of("uid", ports[0]) + &of("gid", ports[1])
}

const PASSED_ON: &str = "-A ISTIO_OUTPUT -s 127.0.0.6/32 -o lo -j RETURN\n";
const LOCALHOST: &str = "-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN\n";
const EVERYTHING: &str = "-A ISTIO_OUTPUT -j ISTIO_REDIRECT\n";
const NETWORKS: &str =
    "-A ISTIO_OUTPUT -d 10.0.0.0/8 -j ISTIO_REDIRECT\n-A ISTIO_OUTPUT -j RETURN\n";
const PORT: &str = "-A ISTIO_OUTPUT -p tcp -m tcp --dport 3306 -j RETURN\n";

/// DNS by TCP, in the chain of outbound connections.
const TCP: &str =
    "-A ISTIO_OUTPUT -d 10.96.0.10/32 -p tcp -m tcp --dport 53 -j REDIRECT --to-ports 15053\n";

/// DNS by UDP and conntrack zones, in these chains.
fn udp(nat: &str, raw: &str, answers: &str) -> (String, String) {
    let each = |text: &str| ["uid", "gid"].map(|id| text.replace("ID", id)).concat();
    let past =
        each(&format!("-A {nat} -p udp -m udp --dport 53 -m owner --ID-owner 1337 -j RETURN\n"));
    let zones = each(&format!(
        "-A {raw} -p udp -m udp --dport 53 -m owner --ID-owner 1337 -j CT --zone 1\n\
         -A {raw} -p udp -m udp --sport 15053 -m owner --ID-owner 1337 -j CT --zone 2\n"
    ));
    (
        format!(
            "{past}-A {nat} -d 10.96.0.10/32 -p udp -m udp --dport 53 -j REDIRECT --to-ports 15053\n"
        ),
        format!(
            "{zones}-A {raw} -d 10.96.0.10/32 -p udp -m udp --dport 53 -j CT --zone 2\n\
             -A PREROUTING {answers} 10.96.0.10/32 -p udp -m udp --sport 53 -j CT --zone 1\n"
        ),
    )
}

const PLAIN: [&str; 2] = ["", ""];
const SPARED: [&str; 2] = ["-p tcp -m tcp ! --dport 53 ", ""];
const TUNNEL: [&str; 2] = ["-p tcp -m tcp ! --dport 15008 ", "-p tcp -m tcp ! --dport 15008 "];
const BOTH: [&str; 2] =
    ["-p tcp -m multiport ! --dports 53,15008 ", "-p tcp -m tcp ! --dport 15008 "];

/// Rules as releases wrote them, with the last of these.
fn releases() -> Vec<(&'static str, String)> {
    let (old, old_raw) = udp("OUTPUT", "OUTPUT", "-d");
    let (nat, raw) = udp("OUTPUT", "OUTPUT", "-s");
    let (end, end_raw) = udp("ISTIO_OUTPUT", "ISTIO_OUTPUT", "-s");
    let of_groups = |own: &str| {
        let queries = format!("-A OUTPUT -p udp -m udp --dport 53 {own}-A OUTPUT -d 10.96");
        let nat = nat.replacen("-A OUTPUT -d 10.96", &queries, 1);
        format!(
            "{CHAINS}{PASSED_ON}{}-A ISTIO_OUTPUT {own}{TCP}{LOCALHOST}{NETWORKS}{nat}COMMIT\n*raw\n{raw}COMMIT\n",
            identity(BOTH, true)
        )
    };
    let drop = "*mangle\n-A PREROUTING -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n";
    vec![
        (
            "1.17",
            format!("{CHAINS}{PASSED_ON}{}{LOCALHOST}{EVERYTHING}COMMIT\n", identity(PLAIN, false)),
        ),
        (
            "1.17",
            format!(
                "{CHAINS}{PORT}{PASSED_ON}{}{TCP}{LOCALHOST}{NETWORKS}{old}COMMIT\n*raw\n{old_raw}COMMIT\n{drop}",
                identity(SPARED, true)
            ),
        ),
        (
            "1.19",
            format!(
                "{CHAINS}{PASSED_ON}{}{TCP}{LOCALHOST}{EVERYTHING}{old}COMMIT\n*raw\n{old_raw}COMMIT\n",
                identity(BOTH, true)
            ),
        ),
        (
            "1.22",
            format!(
                "{CHAINS}{PASSED_ON}{}{TCP}{LOCALHOST}{NETWORKS}{nat}COMMIT\n*raw\n{raw}COMMIT\n",
                identity(BOTH, true)
            ),
        ),
        (
            "1.22",
            format!("{CHAINS}{PASSED_ON}{}{LOCALHOST}{NETWORKS}COMMIT\n", identity(TUNNEL, false)),
        ),
        ("1.22", of_groups("-m owner ! --gid-owner 7 -m owner ! --gid-owner 8 -j RETURN\n")),
        ("1.22", of_groups("-m owner --gid-owner 7 -j RETURN\n")),
        (
            "1.23",
            format!(
                "{CHAINS}{PORT}{PASSED_ON}{}{LOCALHOST}{EVERYTHING}COMMIT\n{drop}",
                identity(TUNNEL, false)
            ),
        ),
        (
            "1.24",
            format!(
                "{CHAINS}{PORT}{PASSED_ON}{}{TCP}{LOCALHOST}{EVERYTHING}-A OUTPUT -p udp -j ISTIO_OUTPUT\n\
                 {end}COMMIT\n*raw\n:ISTIO_OUTPUT - [0:0]\n-A OUTPUT -p udp -j ISTIO_OUTPUT\n{end_raw}COMMIT\n",
                identity(BOTH, true)
            ),
        ),
    ]
}

fn observed(text: &str) -> Observed {
    let dump = Dump::parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let holding = Holding { variant: Variant::Nft, family: Family::V4, dump };
    Observed { holdings: vec![holding], ..Observed::default() }
}

fn found(text: &str) -> Status {
    judge(&observed(text), None, &Groups::new())
}

#[test]
fn what_older_releases_wrote_is_captured() {
    for (last, text) in releases() {
        let found = found(&text);
        assert_eq!(found.state, State::Captured, "{text}{found:#?}");
        let note = format!("rules as istio-iptables up to {last} wrote them; ");
        assert!(found.notes[0].starts_with(&note), "{note}{:#?}", found.notes);
        assert_eq!(found.differences, []);
    }
    let notes = |index: usize| found(&releases()[index].1).notes[0].clone();
    assert!(notes(0).contains("tunnel") && notes(2).contains("answers of DNS servers"));
    assert!(notes(7).ends_with("it means the same as today's"));
    assert!(notes(8).contains("DNS queries by UDP to localhost"));
}

#[test]
fn a_rule_that_is_missing_is_missing_in_the_older_form_too() {
    // Other settings give the same rules without these.
    let settings = [
        "-A ISTIO_OUTPUT -j ISTIO_REDIRECT",
        "--dport 15090",
        "--dport 3306",
        "-j DROP",
        "-d 10.0.0.0/8",
        "-A ISTIO_OUTPUT -j RETURN",
        "-A ISTIO_OUTPUT -m owner ! --gid-owner 7",
        "-A ISTIO_OUTPUT -m owner --gid-owner 7",
    ];
    for (last, text) in releases() {
        for line in text.lines().filter(|line| line.starts_with("-A ")) {
            if settings.iter().any(|part| line.contains(part)) {
                continue;
            }
            let without = text.replacen(&format!("{line}\n"), "", 1);
            let found = found(&without);
            assert_ne!(found.state, State::Captured, "{last} without {line}:\n{without}");
        }
    }
}

#[test]
fn rules_of_two_forms_are_none_of_either() {
    let (_, end) = releases().pop().unwrap();
    // UDP has no way to the rules that exclude its ports, or capture its queries.
    let without = end.replace("-A OUTPUT -p udp -j ISTIO_OUTPUT\n", "");
    assert_eq!(found(&without).state, State::Drifted);
    let (_, plain) = releases().remove(7);
    let newest = plain.replace("-A OUTPUT -p tcp -j ISTIO_OUTPUT", "-A OUTPUT -j ISTIO_OUTPUT");
    assert_eq!(found(&newest).state, State::Drifted, "port 3306 is excluded for TCP alone");
    // A proxy whose own queries are led back to it.
    let (_, dns) = releases().remove(3);
    let late = "-A OUTPUT -p udp -m udp --dport 53 -m owner --uid-owner 1337 -j RETURN\n";
    let moved = dns.replace(late, "").replace("COMMIT\n*raw", &format!("{late}COMMIT\n*raw"));
    assert_eq!(found(&moved).state, State::Drifted);
}

#[test]
fn settings_are_read_off_the_older_form() {
    let found = read_back(&observed(&releases()[1].1));
    let policy = found[0].policy.as_ref().unwrap();
    let ports: Vec<String> =
        policy.outbound.except_ports.iter().map(|port| port.value.to_string()).collect();
    assert_eq!(ports, ["3306"]);
    assert!(policy.dns.is_some() && policy.drop_invalid.is_some());
    assert_eq!(policy.proxy.uids.len(), 1);
}

/// DNS capture of 1.7 and 1.8, with the server's answers translated back.
fn translated(id: &str) -> String {
    format!(
        "-A OUTPUT -p udp -m udp --dport 53 -m owner --uid-owner {id} -j RETURN\n\
         -A OUTPUT -p udp -m udp --dport 53 -m owner --gid-owner {id} -j RETURN\n\
         -A OUTPUT -p udp -m udp --dport 53 -j DNAT --to-destination 127.0.0.1:15053\n\
         -A POSTROUTING -p udp -m udp --dport 15053 -j SNAT --to-source 127.0.0.1\nCOMMIT\n"
    )
}

#[test]
fn dns_that_was_translated_is_told_of_with_chains_and_without() {
    let (_, plain) = releases().remove(0);
    let whole = plain.replace("COMMIT\n", &translated("1337"));
    let status = found(&whole);
    assert_eq!(status.state, State::Drifted);
    assert!(!status.notes.iter().any(|note| note.contains("up to")), "{:#?}", status.notes);
    let status = found(&format!("*nat\n{}", translated("1337")));
    assert_eq!(status.state, State::Drifted);
    assert!(status.notes.iter().any(|note| note.contains("are left")), "{:#?}", status.notes);
    assert_eq!(found(&format!("*nat\n{}", translated("5678"))).state, State::NotCaptured);
}

#[test]
fn tproxy_in_the_older_form_is_captured() {
    let mangle = "*mangle\n:ISTIO_DIVERT - [0:0]\n:ISTIO_INBOUND - [0:0]\n:ISTIO_TPROXY - [0:0]\n\
         -A PREROUTING -p tcp -j ISTIO_INBOUND\n\
         -A PREROUTING -p tcp -m mark --mark 0x539 -j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff\n\
         -A OUTPUT -o lo -p tcp -m mark --mark 0x539 -j RETURN\n\
         -A OUTPUT ! -d 127.0.0.1/32 -o lo -p tcp -m owner --uid-owner 1337 -j MARK --set-xmark 0x53a/0xffffffff\n\
         -A OUTPUT ! -d 127.0.0.1/32 -o lo -p tcp -m owner --gid-owner 1337 -j MARK --set-xmark 0x53a/0xffffffff\n\
         -A OUTPUT -p tcp -m connmark --mark 0x539 -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff\n\
         -A ISTIO_DIVERT -j MARK --set-xmark 0x539/0xffffffff\n-A ISTIO_DIVERT -j ACCEPT\n\
         -A ISTIO_INBOUND -p tcp -m mark --mark 0x539 -j RETURN\n\
         -A ISTIO_INBOUND -s 127.0.0.6/32 -i lo -p tcp -j RETURN\n\
         -A ISTIO_INBOUND -i lo -p tcp -m mark ! --mark 0x53a -j RETURN\n\
         -A ISTIO_INBOUND -p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j ISTIO_DIVERT\n\
         -A ISTIO_INBOUND -p tcp -j ISTIO_TPROXY\n\
         -A ISTIO_TPROXY ! -d 127.0.0.1/32 -p tcp -j TPROXY --on-port 15006 --on-ip 0.0.0.0 --tproxy-mark 0x539/0xffffffff\nCOMMIT\n";
    let nat = releases()[0]
        .1
        .replace("-A PREROUTING -p tcp -j ISTIO_INBOUND\n", "")
        .replace("-A ISTIO_INBOUND -p tcp -m tcp --dport 15090 -j RETURN\n", "")
        .replace("-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT\n", "");
    let mut observed = observed(&format!("{nat}{mangle}"));
    let rule = IpRule {
        family: Family::V4,
        priority: 32765,
        fwmark: Some((1337, u32::MAX)),
        table: 133,
        mark_only: true,
    };
    observed.ip_rules.push(rule);
    observed.routes.push(Route::local_default(Family::V4, 133));
    let found = judge(&observed, None, &Groups::new());
    let differences: Vec<String> = found.differences.iter().map(ToString::to_string).collect();
    assert_eq!(found.state, State::Captured, "{differences:#?}{:#?}", found.notes);
    assert!(found.notes[0].contains("up to 1.17"), "{:#?}", found.notes);
}
