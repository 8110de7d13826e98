//! Programs of others that decide before Millrace's: one that puts a backend's address in the place of a
//! service's lets the proxy know the backend alone, and the mesh loses the service.

use crate::dialect::balancers::SocketBalancer;

/// A program of somebody else's that is called before Millrace's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Earlier {
    /// The kernel's id of the program (`bpf_prog_info`).
    pub id: u32,
    /// Its name, as far as the kernel keeps it; may be empty.
    pub program: String,
    /// What it is called for, as `connect() of IPv4`.
    pub hook: &'static str,
    /// The cgroup whose processes it decides for.
    pub cgroup: String,
}

/// When Millrace's programs are called, among those at the same hooks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Before all others, in every cgroup that they decide for.
    #[default]
    First,
    /// After these, each of which may change a destination first.
    After(Vec<Earlier>),
    /// It can't be told, and why.
    Unknown(String),
}

/// What helps where nobody is known by the name.
const REMEDY: &str = "`millrace node-bpf load` goes before it from Linux 6.15; before that name a \
                      cgroup below its own with --cgroup";

impl Earlier {
    /// Whose it looks to be, by its name.
    fn owner(&self) -> Option<&'static SocketBalancer> {
        SocketBalancer::of(&self.program)
    }

    fn reported(&self) -> String {
        let Self { id, program, hook, cgroup } = self;
        let name = match program.as_str() {
            "" => "a program without a name".to_owned(),
            name => format!("the program {name}"),
        };
        let owner = self
            .owner()
            .map_or(String::new(), |who| format!(", which looks to be {}'s,", who.name));
        format!("{name} (id {id}){owner} comes first for {hook} in {cgroup}")
    }
}

impl Order {
    /// What is wrong with it, and what to do; none where nothing is.
    pub fn reported(&self) -> Option<String> {
        match self {
            Self::First => None,
            Self::Unknown(why) => {
                Some(format!("whether another program comes first can't be told: {why}"))
            }
            Self::After(earlier) => {
                let all: Vec<String> = earlier.iter().map(Earlier::reported).collect();
                let mut remedies: Vec<&str> = Vec::new();
                let known = earlier.iter().filter_map(|one| Some(one.owner()?.leave_pods));
                for remedy in known.chain([REMEDY]) {
                    if !remedies.contains(&remedy) {
                        remedies.push(remedy);
                    }
                }
                Some(format!(
                    "{}: where it changes addresses of services, the proxy is told the changed \
                     ones; {}",
                    all.join("; "),
                    remedies.join(", or ")
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn earlier(program: &str) -> Earlier {
        let hook = "connect() of IPv4";
        Earlier { id: 7, program: program.to_owned(), hook, cgroup: "/sys/fs/cgroup".to_owned() }
    }

    #[test]
    fn who_comes_first_is_named_with_what_helps() {
        let reported = |names: &[&str]| {
            Order::After(names.iter().map(|name| earlier(name)).collect()).reported().unwrap()
        };
        let cilium = reported(&["cil_sock4_conne", "cil_sock4_conne"]);
        let first = "the program cil_sock4_conne (id 7), which looks to be Cilium's, comes first for \
                     connect() of IPv4 in /sys/fs/cgroup";
        assert!(cilium.starts_with(first), "{cilium}");
        assert_eq!(cilium.matches("socketLB.hostNamespaceOnly=true").count(), 1, "{cilium}");
        let calico = reported(&["calico_connect_"]);
        assert!(calico.contains("Calico's") && calico.contains("bpfConnectTimeLoad"), "{calico}");
        let nobody = reported(&[""]);
        assert!(nobody.starts_with("a program without a name (id 7) comes first"), "{nobody}");
        assert!(nobody.ends_with(REMEDY), "{nobody}");
    }

    #[test]
    fn an_order_that_is_right_is_no_news() {
        assert_eq!(Order::First.reported(), None);
        assert!(Order::Unknown("why".to_owned()).reported().unwrap().ends_with("told: why"));
    }
}
