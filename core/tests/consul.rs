//! Verify that flags, settings as JSON, commands and rules are those of Consul's `connect redirect-traffic`: by
//! the rules in which Consul writes them, and by what a kernel held after it. `consul/NOTICE.md` says where
//! that is from; what differs is in `docs/compatibility.md`.
#![expect(clippy::unwrap_used, reason = "a recording that can't be read should stop the test")]
#![expect(clippy::disallowed_methods, reason = "the recordings are files")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use millrace_core::capture::{to_iptables, to_nft};
use millrace_core::dialect::ConfigErrors;
use millrace_core::dialect::consul::{self, DIALECT, LAYOUT, NFT_LAYOUT, Raw, Resolved};
use millrace_core::infer::{of_saved, read_native};
use millrace_core::iptables::Dump;
use millrace_core::policy::CapturePolicy;
use millrace_core::ruleset::{Rule, Ruleset};
use millrace_core::sim::of_nft_json;
use millrace_core::source::Source;
use millrace_core::value::{Family, Groups};
use serde_json::Value;

type Rules = BTreeMap<String, Vec<Rule>>;

fn files(name: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/consul").join(name);
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert_eq!(files.len(), 20);
    files
}

fn name(file: &Path) -> String {
    file.file_stem().unwrap().to_string_lossy().into_owned()
}

/// What flags mean, each a word.
fn resolve<T: AsRef<str>>(flags: impl IntoIterator<Item = T>) -> Result<Resolved, ConfigErrors> {
    let flags = flags.into_iter().map(|word| {
        let word = word.as_ref().trim_start_matches('-');
        let (flag, value) = word.split_once('=').unwrap_or((word, "true"));
        (flag.to_owned(), value.to_owned())
    });
    consul::resolve(&Raw::new(flags, BTreeMap::new()), None)
}

/// What a command line means, `consul connect redirect-traffic` in front.
fn of_line(line: &str) -> Result<Resolved, ConfigErrors> {
    resolve(line.split(' ').skip(3))
}

fn of_json(json: &str, flags: &[(&str, &str)]) -> Result<Resolved, ConfigErrors> {
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let environment = [own(&("CONSUL_REDIRECT_TRAFFIC_CONFIG", json))];
    consul::resolve(&Raw::new(flags.iter().map(own), environment.into()), None)
}

/// The rules of a family by chain, as they mean, without those of chains that nobody has filled.
fn recorded(text: &str, family: Family) -> Rules {
    let (v4, v6) = text.strip_prefix("### ip\n").unwrap().split_once("### ip6").unwrap();
    let dump = Dump::parse(if family == Family::V4 { v4 } else { v6.trim_start() }).unwrap();
    let groups = Groups::new();
    let chains = dump.tables.iter().flat_map(|table| &table.chains);
    let rules = chains.map(|chain| {
        let rules = chain.rules.iter().map(|rule| rule.rule.as_ref().unwrap().canonical(&groups));
        (chain.name.clone(), rules.collect())
    });
    rules.filter(|(_, rules): &(_, Vec<Rule>)| !rules.is_empty()).collect()
}

fn written(ruleset: &Ruleset, family: Family) -> Rules {
    let groups = Groups::new();
    let chains = ruleset.chains(family).into_iter().map(|((_, chain), rules)| {
        let rules = rules.into_iter().map(|emission| emission.rule.canonical(&groups));
        (chain.to_string(), rules.collect::<Vec<_>>())
    });
    chains.filter(|(_, rules)| !rules.is_empty()).collect()
}

/// Verify that the rules are those which the kernel holds after Consul. With IPv4's networks it fails for
/// IPv6 half-way, and the other way round; queries by IPv4 it leaves alone with both.
#[test]
fn rules_in_the_kernel() {
    for file in files("effective") {
        let (name, text) = (name(&file), fs::read_to_string(&file).unwrap());
        let (line, rest) = text.strip_prefix("$ ").unwrap().split_once('\n').unwrap();
        let (exit, text) = rest.split_once('\n').unwrap();
        let Ok(resolved) = of_line(line) else {
            assert!(exit == "# exit 1" && !text.contains('*'), "{name}");
            continue;
        };
        let ruleset = to_iptables(&resolved.policy, &LAYOUT);
        for family in ruleset.families() {
            let whole = match (exit, name.as_str()) {
                ("# exit 0", "dual.consul-dns-port-provided") => family == Family::V6,
                ("# exit 0", _) => true,
                (_, "dual.exclude-outbound-cidrs-is-set") => family == Family::V4,
                _ => false,
            };
            if whole {
                assert_eq!(written(&ruleset, family), recorded(text, family), "{name} {family}");
            }
        }
    }
}

/// A policy whose parts are from nowhere, with networks as a kernel has them.
fn sourceless(mut policy: CapturePolicy) -> CapturePolicy {
    policy.each_source(&mut |source| *source = Source::Always);
    for network in &mut policy.outbound.except_networks {
        network.value = network.value.network();
    }
    policy
}

/// Verify that the settings of native rules that Consul has written are read back from them, and that they
/// are whole.
#[test]
fn native_rules_in_the_kernel() {
    for file in files("nft") {
        let recorded: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        let words = recorded["argv"].as_array().unwrap().iter().map(|word| word.as_str().unwrap());
        let Ok(resolved) = resolve(words.skip(3)) else {
            assert!(name(&file).starts_with("dual.consul-dns-ip"), "{}", name(&file));
            continue;
        };
        let tables = of_saved(&of_nft_json(&recorded["listed"].to_string()).unwrap().tables);
        let read = read_native(&tables, &[], &DIALECT);
        let (policy, _) = read.unwrap_or_else(|| panic!("{}", name(&file)));
        let wanted = sourceless(resolved.policy);
        assert_eq!(sourceless(policy), wanted, "{}", name(&file));
    }
}

/// Verify every command by the rules in which Consul writes them, here with all that can be said.
#[test]
fn commands() {
    let line = "consul connect redirect-traffic -proxy-uid=5995 -proxy-inbound-port=20000 \
                -proxy-outbound-port=15002 -exclude-uid=5996 -exclude-uid=0 \
                -exclude-outbound-cidr=10.0.0.0/8 -exclude-outbound-cidr=fd00::1 \
                -exclude-outbound-port=22 -exclude-outbound-port=8000-8099 \
                -exclude-inbound-port=20300 -exclude-inbound-port=:1023 -dual-stack -netns=/run/pod";
    let resolved = of_line(line).unwrap();
    let got = consul::commands(&to_iptables(&resolved.policy, &LAYOUT), &resolved.options);
    let of_family = |program: &str, localhost: &str, network: &str| -> Vec<String> {
        let rules = [
            "-N CONSUL_PROXY_INBOUND",
            "-N CONSUL_PROXY_IN_REDIRECT",
            "-N CONSUL_PROXY_OUTPUT",
            "-N CONSUL_PROXY_REDIRECT",
            "-N CONSUL_DNS_REDIRECT",
            "-A CONSUL_PROXY_REDIRECT -p tcp -j REDIRECT --to-port 15002",
            "-A OUTPUT -p tcp -j CONSUL_PROXY_OUTPUT",
            "-A CONSUL_PROXY_OUTPUT -m owner --uid-owner 5995 -j RETURN",
            &format!("-A CONSUL_PROXY_OUTPUT -d {localhost} -j RETURN"),
            "-A CONSUL_PROXY_OUTPUT -j CONSUL_PROXY_REDIRECT",
            "-I CONSUL_PROXY_OUTPUT -p tcp --dport 22 -j RETURN",
            "-I CONSUL_PROXY_OUTPUT -p tcp --dport 8000:8099 -j RETURN",
            &format!("-I CONSUL_PROXY_OUTPUT -d {network} -j RETURN"),
            "-I CONSUL_PROXY_OUTPUT -m owner --uid-owner 5996 -j RETURN",
            "-I CONSUL_PROXY_OUTPUT -m owner --uid-owner 0 -j RETURN",
            "-A CONSUL_PROXY_IN_REDIRECT -p tcp -j REDIRECT --to-port 20000",
            "-A PREROUTING -p tcp -j CONSUL_PROXY_INBOUND",
            "-A CONSUL_PROXY_INBOUND -p tcp -j CONSUL_PROXY_IN_REDIRECT",
            "-I CONSUL_PROXY_INBOUND -p tcp --dport 20300 -j RETURN",
            "-I CONSUL_PROXY_INBOUND -p tcp --dport 0:1023 -j RETURN",
        ];
        rules.map(|rule| format!("nsenter --net=/run/pod -- {program} -t nat {rule}")).into()
    };
    let v4 = of_family("iptables", "127.0.0.1/32", "10.0.0.0/8");
    assert_eq!(got, [v4, of_family("ip6tables", "::1/128", "fd00::1")].concat());
}

/// Verify the batch of nft likewise.
#[test]
fn batch() {
    let line = "consul connect redirect-traffic -proxy-uid=5995 -proxy-inbound-port=20000 \
                -exclude-uid=5996 -exclude-outbound-cidr=10.0.0.0/8 -exclude-outbound-port=22 \
                -exclude-inbound-port=8000:8099";
    let batch = |line: &str| {
        let resolved = of_line(line).unwrap();
        consul::batch(&to_nft(&resolved.policy, &NFT_LAYOUT, true))
    };
    let rules = |chain: &str, rules: &[&str]| -> Vec<String> {
        let line = |rule: &&str| {
            let (verb, rule) = rule.split_once(' ').unwrap();
            format!("{verb} rule inet consul_tproxy {chain} {rule}")
        };
        rules.iter().map(line).collect()
    };
    let of_chain = |name: &str| format!("add chain inet consul_tproxy {name}");
    let wanted = [
        ["add", "delete", "add"].map(|verb| format!("{verb} table inet consul_tproxy")).to_vec(),
        [
            "CONSUL_PROXY_INBOUND",
            "CONSUL_PROXY_IN_REDIRECT",
            "CONSUL_PROXY_OUTPUT",
            "CONSUL_PROXY_REDIRECT",
            "CONSUL_DNS_REDIRECT",
            "CONSUL_NAT_OUTPUT { type nat hook output priority -100 ; }",
            "CONSUL_NAT_PREROUTING { type nat hook prerouting priority -100 ; }",
        ]
        .map(of_chain)
        .to_vec(),
        rules("CONSUL_NAT_OUTPUT", &["add meta nfproto ipv6 return"]),
        rules("CONSUL_NAT_PREROUTING", &["add meta nfproto ipv6 return"]),
        rules("CONSUL_PROXY_REDIRECT", &["add meta l4proto tcp redirect to :15001"]),
        rules("CONSUL_NAT_OUTPUT", &["add meta l4proto tcp jump CONSUL_PROXY_OUTPUT"]),
        rules(
            "CONSUL_PROXY_OUTPUT",
            &[
                "add skuid 5995 return",
                "add ip daddr 127.0.0.1/32 return",
                "add ip6 daddr ::1/128 return",
                "add jump CONSUL_PROXY_REDIRECT",
                "insert tcp dport 22 return",
                "insert ip daddr 10.0.0.0/8 return",
                "insert skuid 5996 return",
            ],
        ),
        rules("CONSUL_PROXY_IN_REDIRECT", &["add meta l4proto tcp redirect to :20000"]),
        rules("CONSUL_NAT_PREROUTING", &["add meta l4proto tcp jump CONSUL_PROXY_INBOUND"]),
        rules(
            "CONSUL_PROXY_INBOUND",
            &[
                "add meta l4proto tcp jump CONSUL_PROXY_IN_REDIRECT",
                "insert tcp dport 8000-8099 return",
            ],
        ),
    ];
    assert_eq!(batch(line), wanted.concat().join("\n") + "\n");
    let dual = batch(&format!("{line} -dual-stack"));
    assert!(!dual.contains("nfproto"));
    assert_eq!(dual.matches("CONSUL_PROXY_OUTPUT ip6 daddr ::1/128 return").count(), 1);
}

/// Verify where DNS queries are led to, in commands and in the batch: with a port those to the address alone,
/// which is localhost of each family where none is given.
#[test]
fn dns_queries() {
    let line = "consul connect redirect-traffic -proxy-uid=1 -proxy-inbound-port=2";
    let commands = |flags: &str| -> Vec<String> {
        let resolved = of_line(&format!("{line} {flags}")).unwrap();
        let lines = consul::commands(&to_iptables(&resolved.policy, &LAYOUT), &resolved.options);
        lines.into_iter().filter(|line| line.contains("--dport 53")).collect()
    };
    let batch = |flags: &str| -> Vec<String> {
        let resolved = of_line(&format!("{line} {flags}")).unwrap();
        let batch = consul::batch(&to_nft(&resolved.policy, &NFT_LAYOUT, true));
        let lines = batch.lines().filter(|line| line.contains("dport 53"));
        lines.map(|line| line.replace("add rule inet consul_tproxy ", "")).collect()
    };
    assert_eq!(
        commands("-consul-dns-ip=10.0.34.16"),
        [
            "iptables -t nat -A CONSUL_DNS_REDIRECT -p udp --dport 53 -j DNAT --to-destination 10.0.34.16",
            "iptables -t nat -A CONSUL_DNS_REDIRECT -p tcp --dport 53 -j DNAT --to-destination 10.0.34.16",
            "iptables -t nat -A OUTPUT -p udp --dport 53 -j CONSUL_DNS_REDIRECT",
            "iptables -t nat -A OUTPUT -p tcp --dport 53 -j CONSUL_DNS_REDIRECT",
        ]
    );
    assert_eq!(
        batch("-consul-dns-ip=10.0.34.16"),
        [
            "CONSUL_DNS_REDIRECT udp dport 53 dnat ip to 10.0.34.16",
            "CONSUL_DNS_REDIRECT tcp dport 53 dnat ip to 10.0.34.16",
            "CONSUL_NAT_OUTPUT udp dport 53 jump CONSUL_DNS_REDIRECT",
            "CONSUL_NAT_OUTPUT tcp dport 53 jump CONSUL_DNS_REDIRECT",
        ]
    );
    let of_family = |program: &str, ip: &str, to: &str| {
        let rules = ["udp", "tcp"].map(|p| {
            format!("CONSUL_DNS_REDIRECT -p {p} -d {ip} --dport 53 -j DNAT --to-destination {to}")
        });
        let jumps = ["udp", "tcp"]
            .map(|p| format!("OUTPUT -p {p} -d {ip} --dport 53 -j CONSUL_DNS_REDIRECT"));
        [rules, jumps].concat().into_iter().map(|r| format!("{program} -t nat -A {r}")).collect()
    };
    let v4: Vec<String> = of_family("iptables", "127.0.0.1", "127.0.0.1:8600");
    let v6: Vec<String> = of_family("ip6tables", "::1", "[::1]:8600");
    assert_eq!(commands("-consul-dns-port=8600"), v4);
    assert_eq!(commands("-consul-dns-port=8600 -dual-stack"), [v4, v6].concat());
    let of_family = |ip: &str, to: &str| {
        let rules = ["udp", "tcp"]
            .map(|p| format!("CONSUL_DNS_REDIRECT {ip} {p} dport 53 dnat to {to}:8600"));
        let jumps = ["udp", "tcp"]
            .map(|p| format!("CONSUL_NAT_OUTPUT {ip} {p} dport 53 jump CONSUL_DNS_REDIRECT"));
        [rules, jumps].concat()
    };
    let v4 = of_family("ip daddr 127.0.0.1", "127.0.0.1");
    let v6 = of_family("ip6 daddr ::1", "[::1]");
    assert_eq!(batch("-consul-dns-port=8600"), v4);
    assert_eq!(batch("-consul-dns-port=8600 -dual-stack"), [v4, v6].concat());
}

/// Verify that JSON says the same as flags, and that these win.
#[test]
fn settings_as_json() {
    let json = r#"{"ConsulDNSIP":"","ConsulDNSPort":0,"ProxyUserID":"5995","ProxyInboundPort":20000,
        "ProxyOutboundPort":15001,"ExcludeInboundPorts":["21000","20300"],"ExcludeOutboundPorts":null,
        "ExcludeOutboundCIDRs":["3.3.3.3","3.3.3.3/24"],"ExcludeUIDs":["4444","5996"],"NetNS":"",
        "IptablesProvider":null}"#;
    let line = "consul connect redirect-traffic -proxy-uid=5995 -proxy-inbound-port=20000 \
                -exclude-inbound-port=21000 -exclude-inbound-port=20300 \
                -exclude-outbound-cidr=3.3.3.3 -exclude-outbound-cidr=3.3.3.3/24 -exclude-uid=4444 \
                -exclude-uid=5996";
    let (of_json_, of_flags) = (of_json(json, &[]).unwrap(), of_line(line).unwrap());
    let source = of_json_.policy.inbound.port.source.to_string();
    let wanted = "configuration key ProxyInboundPort of environment variable \
                  CONSUL_REDIRECT_TRAFFIC_CONFIG";
    assert_eq!(source, wanted);
    assert_eq!(sourceless(of_json_.policy), sourceless(of_flags.policy));
    let flags = [("proxy-inbound-port", "1"), ("exclude-uid", "7")];
    let policy = of_json(json, &flags).unwrap().policy;
    assert_eq!(policy.inbound.port.value.get(), 1);
    assert_eq!(policy.outbound.except_users.len(), 1);
    // Go takes a key in any case.
    assert!(of_json(r#"{"proxyuserid":"1","PROXYINBOUNDPORT":2}"#, &[]).is_ok());
}

fn told(resolved: Result<Resolved, ConfigErrors>) -> (Option<&'static str>, String) {
    let errors = resolved.unwrap_err();
    (consul::said(&errors), errors.to_string())
}

/// Verify what is said of flags that Consul does not take, in its own words first.
#[test]
fn wrong_flags() {
    let both =
        "-proxy-inbound-port or -proxy-outbound-port cannot be provided together with -proxy-id.";
    for (flags, said) in [
        ("", "-proxy-uid is required"),
        ("-proxy-uid=1234", "either -proxy-id or -proxy-inbound-port are required"),
        ("-proxy-uid=1234 -proxy-id=test -proxy-inbound-port=15000", both),
        ("-proxy-uid=1234 -proxy-id=test -proxy-outbound-port=15000", both),
        ("-proxy-uid=1234 -proxy-id=test -proxy-inbound-port=15000 -proxy-outbound-port=1", both),
    ] {
        let flags = flags.split(' ').filter(|word| !word.is_empty());
        assert_eq!(told(resolve(flags)).0, Some(said));
    }
    let (said, error) = told(resolve(["-proxy-uid=1", "-proxy-id=web"]));
    assert_eq!(said, None);
    let wanted = "flag --proxy-id: \"web\": the proxy service would have to be looked up at a Consul \
                  agent";
    assert!(error.starts_with(wanted), "{error}");
    let dns = |flags: &[&str]| {
        told(resolve([&["-proxy-uid=1", "-proxy-inbound-port=2"], flags].concat())).0
    };
    let v6_wanted = Some("for dual stack ipv6 consulDNSIP required");
    assert_eq!(dns(&["-consul-dns-ip=192.0.2.1", "-dual-stack"]), v6_wanted);
    let v4_wanted = Some("for non dual stack setup ipv4 consulDNSIP required");
    assert_eq!(dns(&["-consul-dns-ip=2001:db8::68"]), v4_wanted);
    for more in [&[][..], &["-dual-stack"]] {
        let flags = [&["-consul-dns-ip=not-an-ip"], more].concat();
        assert_eq!(dns(&flags), Some("unable to parse consulDNSIP"));
    }
}

/// Verify that every value is parsed, and that each error says what was wrong and where it is from.
#[test]
fn wrong_values() {
    let (_, error) = told(resolve([
        "-proxy-uid=envoy",
        "-proxy-inbound-port=0",
        "-proxy-outbound-port=x",
        "-exclude-inbound-port=http",
        "-exclude-outbound-port=9-8",
        "-exclude-outbound-port=:",
        "-exclude-outbound-cidr=10.0.0.0/33",
        "-exclude-uid=-1",
    ]));
    let starts = [
        "flag --proxy-uid: \"envoy\": a user id is",
        "flag --proxy-inbound-port: \"0\": a listening port is",
        "flag --proxy-outbound-port: \"x\": a listening port is",
        "flag --exclude-inbound-port: \"http\": a port is",
        "flag --exclude-outbound-port: \"9-8\": a port is",
        "flag --exclude-outbound-port: \":\": a port is",
        "flag --exclude-outbound-cidr: \"10.0.0.0/33\": a network is",
        "flag --exclude-uid: \"-1\": a user id is",
    ];
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines.len(), starts.len(), "{error}");
    for (line, start) in lines.iter().zip(starts) {
        assert!(line.starts_with(start), "{line}");
    }
    for (json, wanted) in [
        (
            "[]",
            "environment variable CONSUL_REDIRECT_TRAFFIC_CONFIG: \"[]\": settings are an object",
        ),
        ("{", "environment variable CONSUL_REDIRECT_TRAFFIC_CONFIG: \"{\": this is no JSON"),
        (
            r#"{"ProxyUserID":5995}"#,
            "configuration key ProxyUserID of environment variable CONSUL_REDIRECT_TRAFFIC_CONFIG: \
             \"5995\": this setting is a text",
        ),
        (r#"{"ExcludeUIDs":[5995]}"#, "configuration key ExcludeUIDs of environment"),
        (r#"{"ProxyInboundPort":"1"}"#, "configuration key ProxyInboundPort of environment"),
        (r#"{"IptablesProvider":{"a":1}}"#, "configuration key IptablesProvider of environment"),
    ] {
        let (_, error) = told(of_json(json, &[]));
        assert!(error.starts_with(wanted), "{error}");
    }
}
