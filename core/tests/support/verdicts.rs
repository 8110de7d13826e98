//! Recorded connections of a captured pod, and who answered them: `app -> podIP:8080 = pod:8080@ip`.

/// Who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// Somebody outside.
    Peer,
    /// The application.
    App,
    /// The proxy.
    Proxy,
}

/// A connection and its end.
#[derive(Clone, Debug)]
pub(crate) struct RecordedVerdict {
    /// The whole line, for messages.
    pub(crate) line: String,
    /// Who connects.
    pub(crate) who: Who,
    /// From which address, if it is not the kernel's choice.
    pub(crate) from: Option<String>,
    /// To whom: `pod`, `peer`, or an address.
    pub(crate) to: String,
    /// To which port.
    pub(crate) port: u16,
    /// Whether it is a datagram.
    pub(crate) udp: bool,
    /// Who answers, on which port, and whether under the address of the pod or of localhost.
    pub(crate) end: String,
}

/// The command line of a recording, and its connections.
pub(crate) fn read(text: &str) -> (Vec<String>, Vec<RecordedVerdict>) {
    let (line, rest) = text.split_once("\n# exit 0\n").unwrap();
    let words = line.strip_prefix("$ ").unwrap().split(' ').map(str::to_owned).collect();
    (words, rest.lines().map(verdict).collect())
}

fn verdict(line: &str) -> RecordedVerdict {
    let (connection, end) = line.split_once(" = ").unwrap();
    let (who, to) = connection.split_once(" -> ").unwrap();
    let (to, udp) = match to.split_once('/') {
        Some((to, protocol)) => (to, protocol == "udp"),
        None => (to, false),
    };
    let (to, port) = to.rsplit_once(':').unwrap();
    let from = who.split_once("(src ").map(|(_, from)| from.trim_end_matches(')').to_owned());
    RecordedVerdict {
        line: line.to_owned(),
        who: match who.split('(').next().unwrap() {
            "peer" => Who::Peer,
            "app" => Who::App,
            _ => Who::Proxy,
        },
        from,
        to: if to == "podIP" { "pod".to_owned() } else { to.to_owned() },
        port: port.parse().unwrap(),
        udp,
        end: end.to_owned(),
    }
}
