//! What runs in a machine: the shell scripts that mount its disks and run the suites.

use super::suites::Built;
use crate::repo;

/// What a line of the results begins with that is no suite's own.
pub(super) const MARK: &str = "\u{1}vm";

/// The first file system's `init`: loads modules, mounts the disks, and goes over to them.
pub(super) fn init(modules: &[String]) -> String {
    let load: Vec<String> = modules.iter().map(|name| format!("insmod /m/{name}\n")).collect();
    let load = load.concat();
    format!(
        r#"#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /sbin /usr/bin /usr/sbin
$b --install -s
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
{load}disk() {{
    for at in /sys/block/vd*; do
        if [ "$(cat "$at/serial")" = "$1" ]; then
            mount -t ext4 -o "$2" "/dev/${{at##*/}}" "$3" && return
        fi
    done
    echo "vm: there is no disk $1"; echo o >/proc/sysrq-trigger; sleep 60
}}
n=0
while [ "$(ls -d /sys/block/vd* 2>/dev/null | wc -l)" -lt 3 ] && [ $n -lt 100 ]; do sleep 0.2; n=$((n + 1)); done
disk root rw /new
mkdir -p /new/lib/modules; disk modules ro /new/lib/modules
for word in $(cat /proc/cmdline); do case $word in vm.place=*) place=${{word#vm.place=}} ;; esac; done
mkdir -p "/new$place"; disk tests ro "/new$place"
mount --move /proc /new/proc; mount --move /sys /new/sys; mount --move /dev /new/dev
exec switch_root /new /bin/bash "$place/vm-run"
"#
    )
}

/// What the machine runs once its disks are mounted: every suite, to its end.
pub(super) fn script(built: &Built, args: &[&str], without: &[&str]) -> String {
    let place = repo::root();
    let place = quote(&place.display().to_string());
    let args: Vec<String> = args.iter().map(|arg| format!(" {}", quote(arg))).collect();
    let args = args.concat();
    let mut text = r"export PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
export CI=true RUST_BACKTRACE=0
exec </dev/null >/dev/ttyS0 2>&1
mount -t tmpfs tmpfs /tmp; mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup; mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
mkdir -p /dev/pts /dev/shm; mount -t devpts devpts /dev/pts; mount -t tmpfs tmpfs /dev/shm
ln -sf /proc/self/fd /dev/fd
ip link set lo up
echo vm >/proc/sys/kernel/hostname
busybox stty raw -echo -onlcr </dev/ttyS1
exec 3>/dev/ttyS1
"
    .to_owned();
    for module in without {
        // The kernel finds modules by alias, so that it is out of the way of those as well.
        let line = format!("install {module} /bin/false\nblacklist {module}\n");
        text.push_str(&format!("printf %s {} >>/etc/modprobe.d/vm.conf\n", quote(&line)));
    }
    text.push_str(&format!("printf '{MARK} kernel %s\\n' \"$(uname -r)\" >&3\ncd {place}/tests\n"));
    for (name, file) in &built.suites {
        let file = quote(&file.display().to_string());
        text.push_str(&format!(
            "printf '{MARK} begin {name}\\n' >&3\n\
             {file} --color=never{args} >&3 2>&1\n\
             printf '\\n{MARK} end {name} %s\\n' $? >&3\n"
        ));
    }
    text.push_str(&format!(
        "printf '{MARK} done\\n' >&3\nsleep 0.5\necho o >/proc/sysrq-trigger\nsleep 60\n"
    ));
    text
}

fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// What a marked line says: a word, and its values by place.
pub(super) fn marked(line: &str) -> Option<Vec<&str>> {
    Some(line.strip_prefix(MARK)?.split_whitespace().collect())
}

/// Suites by name, for tests of what is made of them.
#[cfg(test)]
pub(super) fn built_of(names: &[&str]) -> Built {
    let file = |name: &&str| ((*name).to_owned(), std::path::PathBuf::from(format!("/t/{name}-1")));
    Built { suites: names.iter().map(file).collect(), programs: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_a_shells() {
        let built = built_of(&["traffic", "preflight"]);
        let run = script(&built, &["--test-threads=1", "it's"], &["nft_tproxy"]);
        for text in [init(&["ext4.ko".to_owned()]), run.clone()] {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("script");
            std::fs::write(&file, &text).unwrap();
            repo::output(std::process::Command::new("bash").arg("-n").arg(&file)).unwrap();
        }
        assert!(
            run.contains("'/t/traffic-1' --color=never '--test-threads=1' 'it'\\''s' >&3"),
            "{run}"
        );
        assert!(run.contains("install nft_tproxy /bin/false"), "{run}");
    }

    #[test]
    fn marked_lines_are_told_from_a_suites_own() {
        assert_eq!(marked("\u{1}vm end traffic 101"), Some(vec!["end", "traffic", "101"]));
        assert_eq!(marked("vm end traffic 0"), None);
    }
}
