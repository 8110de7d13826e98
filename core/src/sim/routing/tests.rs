//! Tables of routes: which of them is taken, and what may be one table.

use super::super::ranges::number;
use super::*;

#[test]
fn the_longest_prefix_wins_then_the_metric() {
    let route = |network: &str, metric, action| TableRoute {
        table: MAIN_TABLE,
        network: network.parse().unwrap(),
        metric,
        action,
    };
    let by = |name: &str| RouteAction::Out(vec![Exit::by(name)]);
    let routes = vec![
        route("0.0.0.0/0", 200, by("b")),
        route("0.0.0.0/0", 100, by("a")),
        route("10.0.0.0/8", 0, RouteAction::Throw),
        route("10.1.0.0/16", 5, by("c")),
    ];
    let tables = RoutingTables::new(Vec::new(), routes, None);
    let of = |ip: &str| {
        let number = number(ip.parse().unwrap());
        let mut table = tables.table(Family::V4, MAIN_TABLE).iter();
        table.find(|(_, ranges)| ranges.contains(number)).map(|(action, _)| action.clone())
    };
    assert_eq!(of("9.9.9.9"), Some(by("a")));
    assert_eq!(of("10.2.0.1"), Some(RouteAction::Throw));
    assert_eq!(of("10.1.0.1"), Some(by("c")));
}

fn route(table: u32, network: &str, action: RouteAction) -> TableRoute {
    TableRoute { table, network: network.parse().unwrap(), metric: 0, action }
}

fn by(name: &str) -> RouteAction {
    RouteAction::Out(vec![Exit::by(name)])
}

/// What a table says of an address.
fn said(tables: &RoutingTables, table: u32, ip: &str) -> Option<RouteAction> {
    let ip: IpAddr = ip.parse().unwrap();
    let mut table = tables.table(Family::of(ip), table).iter();
    table.find(|(_, ranges)| ranges.contains(number(ip))).map(|(action, _)| action.clone())
}

/// The tables of IPv4 are one until the first rule is made, and the longest prefix of both wins.
#[test]
fn two_tables_can_be_one() {
    let source: IpAddr = "10.4.0.7".parse().unwrap();
    let routes = || {
        vec![
            route(LOCAL_TABLE, "10.4.0.0/16", RouteAction::Local(Some(source))),
            route(
                LOCAL_TABLE,
                "10.4.0.2/32",
                RouteAction::Local(Some("10.4.0.2".parse().unwrap())),
            ),
            route(MAIN_TABLE, "10.4.0.0/24", by("eth0")),
            route(MAIN_TABLE, "10.4.0.2/32", by("eth1")),
            route(MAIN_TABLE, "0.0.0.0/0", by("eth0")),
        ]
    };
    let asked = ["10.4.0.1", "10.4.0.2", "10.4.9.9"];
    let local = RouteAction::Local(None);
    let of = |merged, rules: Vec<RoutingRule>| {
        let tables = RoutingTables::new(rules, routes(), merged);
        let found = asked.map(|ip| said(&tables, LOCAL_TABLE, ip).unwrap());
        (found, tables.local(Family::V4).contains(number(asked[0].parse().unwrap())))
    };
    let here = ([local.clone(), local.clone(), local.clone()], true);
    assert_eq!(of(Some(false), Vec::new()), here);
    assert_eq!(of(Some(true), Vec::new()), ([by("eth0"), local.clone(), local.clone()], false));
    let unclear = RouteAction::Unmodelled(MERGED.to_owned());
    assert_eq!(of(None, Vec::new()), ([unclear, local.clone(), local], false));
    let rule = RoutingRule {
        family: Family::V4,
        priority: 5,
        selector: Selector { mark: Some(Masked::exact(1)), ..Selector::default() },
        action: RuleAction::Table(7),
    };
    assert_eq!(of(None, vec![rule]), here);
    // An address in there is the source of what is sent to itself.
    let tables = RoutingTables::new(Vec::new(), routes(), Some(false));
    let named = |ip: &str| {
        let ip = number(ip.parse().unwrap());
        tables.local_sources(Family::V4).find(|(_, to)| to.contains(ip)).map(|(source, _)| *source)
    };
    assert_eq!((named("10.4.0.2"), named("10.4.0.3")), (None, Some(source)));
}

/// A route whose paths are all dead is none.
#[test]
fn dead_routes_are_passed_over() {
    let dead = RouteAction::Out(Vec::new());
    let routes = vec![
        route(MAIN_TABLE, "9.9.9.0/24", dead.clone()),
        route(MAIN_TABLE, "0.0.0.0/0", by("eth0")),
        route(MAIN_TABLE, "fd09::/16", dead),
        route(MAIN_TABLE, "::/0", by("eth0")),
    ];
    let tables = RoutingTables::new(Vec::new(), routes, None);
    for (ip, wanted) in [("9.9.9.9", by("eth0")), ("fd09::9", by("eth0"))] {
        assert_eq!(said(&tables, MAIN_TABLE, ip), Some(wanted), "{ip}");
    }
}

/// Whatever lies in what, each address has the narrowest network's action.
#[test]
fn networks_lie_in_each_other() {
    let mut state = 11_u64;
    let mut roll = |below: u64| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 33) % below
    };
    for _ in 0..300 {
        let routes: Vec<TableRoute> = (0..=roll(12))
            .map(|_| {
                let length = 26 + roll(7);
                let name = format!("eth{}", roll(4));
                let network = format!("255.255.255.{}/{length}", 192 + roll(64));
                let network = network.parse::<Cidr>().unwrap().network();
                let metric = u32::try_from(roll(3)).unwrap();
                TableRoute { table: 7, network, metric, action: by(&name) }
            })
            .collect();
        let tables = RoutingTables::new(Vec::new(), routes.clone(), None);
        for last in 0..=255 {
            let ip = format!("255.255.255.{last}");
            let to: IpAddr = ip.parse().unwrap();
            let fits = routes.iter().filter(|route| route.network.contains(to));
            let wanted = fits.min_by_key(|route| (Reverse(route.network.length()), route.metric));
            assert_eq!(said(&tables, 7, &ip), wanted.map(|r| r.action.clone()), "{ip}: {routes:?}");
        }
    }
}

/// So many routes are put in order at once: pair by pair they would take minutes.
#[test]
fn many_routes_are_put_in_order() {
    let base = number("10.0.0.0".parse().unwrap());
    let host = |at: u128| super::super::ranges::address(Family::V4, base + 2 * at).to_string();
    let routes = (0..100_000).map(|at| {
        let action = by(&format!("eth{}", at % 20_000));
        TableRoute {
            table: 7,
            network: format!("{}/32", host(at)).parse().unwrap(),
            metric: 0,
            action,
        }
    });
    let tables = RoutingTables::new(Vec::new(), routes.collect(), None);
    assert_eq!(said(&tables, 7, &host(54_321)), Some(by("eth14321")));
}
