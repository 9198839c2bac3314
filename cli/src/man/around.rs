//! What a page says that the help has no place for: variables, files, and pages beside it.

/// An entry: what, and what is told of it.
type Entry = (&'static str, &'static str);

const PROVIDER: Entry = (
    "NOIOMMU_PROVIDER",
    "How devices are reached, in place of the best way: cdev-noiommu, group-noiommu, cdev, group, uio, sysfs or sim.",
);
const GUARDIAN: Entry = (
    "NOIOMMU_GUARDIAN",
    "Who keeps the memory of this process's devices when it dies: unset, a process of its own, or the service where there is one; \
     service:PATH, the service that listens there.",
);
const PRELOAD: Entry =
    ("NOIOMMU_PRELOAD_LIBRARY", "Where libnoiommu_preload.so is, if it is not where it was installed.");
const COLOUR: Entry = ("NO_COLOR", "If set and not empty, nothing is coloured.");

const OPT_IN: Entry = (
    "/run/noiommu/enable_unsafe_noiommu_mode",
    "The opt-in of the administrator: root's alone, gone after a restart.",
);
const BINDINGS: Entry = (
    "/run/noiommu/bindings",
    "What devices were before they were bound, a file for each. Gone after a restart.",
);
const CONFIGURED: Entry = ("/run/noiommu/configured", "Which of them a configuration file has bound.");
const CONFIG: Entry = ("/etc/noiommu.conf", "What noiommu.service binds at boot: see noiommu.conf(5).");
const SOCKET: Entry = ("/run/noiommu/guardian.sock", "Where the guardian's service listens.");
const LIBRARY: Entry = (
    "/usr/lib/noiommu/libnoiommu_preload.so",
    "What is put before the C library of programs that are served.",
);

/// The sections of a page, in the order of man-pages(7).
pub(super) fn sections(page: &str) -> Vec<(&'static str, Vec<Entry>)> {
    let environment: &[Entry] = match page {
        "noiommu" => &[PROVIDER, GUARDIAN, PRELOAD, COLOUR],
        "noiommu-demo" | "noiommu-nvme" => &[PROVIDER, GUARDIAN],
        "noiommu-serve" => &[PRELOAD, GUARDIAN],
        "noiommu-guardian" => &[GUARDIAN],
        _ => &[],
    };
    let files: &[Entry] = match page {
        "noiommu" => &[CONFIG, OPT_IN, BINDINGS, LIBRARY],
        "noiommu-bind" | "noiommu-unbind" => &[CONFIG, BINDINGS, CONFIGURED],
        "noiommu-enable" | "noiommu-disable" => &[OPT_IN],
        "noiommu-guardian" => &[SOCKET],
        "noiommu-serve" => &[LIBRARY],
        _ => &[],
    };
    [("ENVIRONMENT", environment), ("FILES", files)]
        .into_iter()
        .filter(|(_, entries)| !entries.is_empty())
        .map(|(heading, entries)| (heading, entries.to_vec()))
        .collect()
}

/// The pages beside a page, besides those above and below it.
pub(super) fn neighbours(page: &str) -> Vec<(&'static str, &'static str)> {
    let pages: &[_] = match page {
        "noiommu" => &[("noiommu.conf", "5")],
        "noiommu-bind" => &[("noiommu-unbind", "1"), ("noiommu-list", "1"), ("noiommu.conf", "5")],
        "noiommu-unbind" => &[("noiommu-bind", "1"), ("noiommu.conf", "5")],
        "noiommu-list" => &[("noiommu-bind", "1"), ("noiommu-doctor", "1"), ("lspci", "8")],
        "noiommu-enable" => &[("noiommu-disable", "1"), ("noiommu-doctor", "1")],
        "noiommu-disable" => &[("noiommu-enable", "1")],
        "noiommu-doctor" => &[("noiommu-list", "1"), ("noiommu-config", "1"), ("capabilities", "7")],
        "noiommu-guardian" => &[("noiommu-serve", "1"), ("systemd.service", "5")],
        "noiommu-serve" => &[("noiommu-enable", "1"), ("noiommu-guardian", "1"), ("ld.so", "8")],
        _ => &[],
    };
    pages.to_vec()
}
