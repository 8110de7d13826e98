//! The messages of NRI that are read and written here, as `pkg/api/api.proto` of
//! [containerd/nri](https://github.com/containerd/nri/blob/v0.12.2/pkg/api/api.proto) defines them in
//! version 0.12.2 (package `nri.pkg.api.v1alpha1`), and those of ttrpc around them
//! ([request.proto](https://github.com/containerd/ttrpc/blob/v1.2.9/request.proto), version 1.2.9). Members
//! that nothing here needs are passed over; numbers of members never change their meaning.

use std::collections::HashMap;

use prost::Message;

/// The service that the runtime calls.
pub const PLUGIN: &str = "nri.pkg.api.v1alpha1.Plugin";
/// The service that the plugin calls.
pub const RUNTIME: &str = "nri.pkg.api.v1alpha1.Runtime";

/// A request of ttrpc.
#[derive(Clone, PartialEq, Message)]
pub struct Request {
    /// The service's full name.
    #[prost(string, tag = "1")]
    pub service: String,
    /// The method's name.
    #[prost(string, tag = "2")]
    pub method: String,
    /// The method's own message.
    #[prost(bytes = "vec", tag = "3")]
    pub payload: Vec<u8>,
    /// How long an answer is waited for; 0 where that is not told.
    #[prost(int64, tag = "4")]
    pub timeout_nano: i64,
}

/// An answer of ttrpc.
#[derive(Clone, PartialEq, Message)]
pub struct Response {
    /// None, or code 0, where it succeeded.
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    /// The method's own message.
    #[prost(bytes = "vec", tag = "2")]
    pub payload: Vec<u8>,
}

/// Why something failed (`google.rpc.Status`).
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Status {
    /// A code of gRPC.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// What went wrong.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// `RegisterPluginRequest`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RegisterPlugin {
    /// The plugin's name.
    #[prost(string, tag = "1")]
    pub plugin_name: String,
    /// Two digits: plugins are called in this order.
    #[prost(string, tag = "2")]
    pub plugin_idx: String,
    /// The version of NRI that it speaks.
    #[prost(string, tag = "3")]
    pub nri_version: String,
}

/// `ConfigureRequest`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Configure {
    /// The runtime's name.
    #[prost(string, tag = "2")]
    pub runtime_name: String,
    /// The runtime's version.
    #[prost(string, tag = "3")]
    pub runtime_version: String,
    /// How long a request may take, in milliseconds; 0 where older runtimes don't tell.
    #[prost(int64, tag = "5")]
    pub request_timeout: i64,
    /// The runtime's version of NRI.
    #[prost(string, tag = "6")]
    pub nri_version: String,
}

/// `ConfigureResponse`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Configured {
    /// A bit for each [`Event`] that the plugin wants to hear of.
    #[prost(int32, tag = "2")]
    pub events: i32,
}

/// `SynchronizeRequest`
#[derive(Clone, PartialEq, Message)]
pub struct Synchronize {
    /// Pods that there are.
    #[prost(message, repeated, tag = "1")]
    pub pods: Vec<PodSandbox>,
    /// Containers that there are.
    #[prost(message, repeated, tag = "2")]
    pub containers: Vec<Container>,
    /// Whether more of both follow.
    #[prost(bool, tag = "3")]
    pub more: bool,
}

/// `SynchronizeResponse`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Synchronized {
    /// As in the request: more is expected.
    #[prost(bool, tag = "2")]
    pub more: bool,
}

/// The beginning of all requests about a pod, or about a container and its pod.
#[derive(Clone, PartialEq, Message)]
pub struct AboutPod {
    /// The pod.
    #[prost(message, optional, tag = "1")]
    pub pod: Option<PodSandbox>,
}

/// `StateChangeEvent`, by which runtimes with NRI before 0.12 tell of pods.
#[derive(Clone, PartialEq, Message)]
pub struct StateChange {
    /// Which [`Event`].
    #[prost(int32, tag = "1")]
    pub event: i32,
    /// The pod.
    #[prost(message, optional, tag = "2")]
    pub pod: Option<PodSandbox>,
}

/// `PodSandbox`
#[derive(Clone, PartialEq, Message)]
pub struct PodSandbox {
    /// The runtime's id of it.
    #[prost(string, tag = "1")]
    pub id: String,
    /// `metadata.name`
    #[prost(string, tag = "2")]
    pub name: String,
    /// `metadata.uid`
    #[prost(string, tag = "3")]
    pub uid: String,
    /// `metadata.namespace`
    #[prost(string, tag = "4")]
    pub namespace: String,
    /// The pod's annotations, and the runtime's own.
    #[prost(map = "string, string", tag = "6")]
    pub annotations: HashMap<String, String>,
    /// What it has on Linux.
    #[prost(message, optional, tag = "8")]
    pub linux: Option<LinuxPodSandbox>,
    /// Its first process; 0 where there is none.
    #[prost(uint32, tag = "9")]
    pub pid: u32,
}

/// `LinuxPodSandbox`
#[derive(Clone, PartialEq, Message)]
pub struct LinuxPodSandbox {
    /// Its namespaces. Without one of type `network` it has the node's.
    #[prost(message, repeated, tag = "5")]
    pub namespaces: Vec<LinuxNamespace>,
}

/// `LinuxNamespace`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct LinuxNamespace {
    /// As OCI calls it: `network`, `pid` and others.
    #[prost(string, tag = "1")]
    pub r#type: String,
    /// Where it is, as the runtime sees it.
    #[prost(string, tag = "2")]
    pub path: String,
}

/// `Container`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Container {
    /// The id of its pod.
    #[prost(string, tag = "2")]
    pub pod_sandbox_id: String,
}

/// What a plugin may hear of. Those that came after the first release of NRI are left out: an older
/// runtime refuses a plugin that wants them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A pod's sandbox runs, and none of its containers.
    RunPodSandbox,
    /// It is stopped.
    StopPodSandbox,
    /// It is gone.
    RemovePodSandbox,
    /// A container is to be created in it.
    CreateContainer,
}

impl Event {
    /// Those that are wanted here.
    pub const ALL: [Self; 4] =
        [Self::RunPodSandbox, Self::StopPodSandbox, Self::RemovePodSandbox, Self::CreateContainer];

    /// Its number.
    pub const fn number(self) -> i32 {
        match self {
            Self::RunPodSandbox => 1,
            Self::StopPodSandbox => 2,
            Self::RemovePodSandbox => 3,
            Self::CreateContainer => 4,
        }
    }

    /// The one of this number.
    pub fn find(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|event| event.number() == number)
    }

    /// The method by which a runtime tells of it.
    pub const fn method(self) -> &'static str {
        match self {
            Self::RunPodSandbox => "RunPodSandbox",
            Self::StopPodSandbox => "StopPodSandbox",
            Self::RemovePodSandbox => "RemovePodSandbox",
            Self::CreateContainer => "CreateContainer",
        }
    }

    /// All of them, as [`Configured`] has them.
    pub fn mask() -> i32 {
        Self::ALL.into_iter().fold(0, |mask, event| mask | 1 << (event.number() - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Verify that a message of a runtime is read by the numbers of its members: bytes as they are written
    /// by the rules of Protocol Buffers, with members in between that are not known here.
    #[test]
    fn a_pod_is_read_from_its_bytes() {
        let text = |tag: u8, text: &str| {
            let mut bytes = vec![tag << 3 | 2, u8::try_from(text.len()).unwrap()];
            bytes.extend(text.as_bytes());
            bytes
        };
        let nested = |tag: u8, bytes: &[u8]| {
            let mut all = vec![tag << 3 | 2, u8::try_from(bytes.len()).unwrap()];
            all.extend(bytes);
            all
        };
        let namespace = [text(1, "network"), text(2, "/run/netns/a")].concat();
        let annotation = [text(1, "k"), text(2, "v")].concat();
        let pod = [
            text(1, "id"),
            text(2, "web"),
            text(3, "uid"),
            text(4, "shop"),
            nested(5, &annotation),
            nested(6, &annotation),
            text(7, "runc"),
            nested(8, &[text(3, "/cgroup"), nested(5, &namespace)].concat()),
            vec![9 << 3, 42],
            text(10, "10.0.0.1"),
        ]
        .concat();
        let about = AboutPod::decode(nested(1, &pod).as_slice()).unwrap();
        let pod = about.pod.unwrap();
        assert_eq!((pod.id.as_str(), pod.name.as_str(), pod.pid), ("id", "web", 42));
        assert_eq!((pod.uid.as_str(), pod.namespace.as_str()), ("uid", "shop"));
        assert_eq!(pod.annotations.get("k").map(String::as_str), Some("v"));
        let namespaces = pod.linux.unwrap().namespaces;
        assert_eq!((namespaces[0].r#type.as_str(), namespaces.len()), ("network", 1));
        assert_eq!(namespaces[0].path, "/run/netns/a");
    }

    #[test]
    fn the_events_that_every_runtime_knows_are_wanted() {
        assert_eq!(Event::mask(), 0b1111);
        for event in Event::ALL {
            assert_eq!(Event::find(event.number()), Some(event));
        }
        assert_eq!(Event::find(12), None);
    }

    #[test]
    fn what_is_no_message_is_refused() {
        assert!(Synchronize::decode([0x0a, 0xff].as_slice()).is_err());
        assert!(Request::decode([0x0a, 0x02, 0xff, 0xfe].as_slice()).is_err());
    }
}
