//! What the answer looks like: for people, with the table of the kernel's documentation, and as JSON.

use anstyle::{AnsiColor, Style};
use noiommu_core::Errno;
use noiommu_core::vfio::config::{Container, DeviceNodes, Feature, Interface};
use serde_json::{Value, json};

use super::{Answer, ModeSource, Question};
use crate::ui::styled;

/// The rows of the table.
const FEATURES: [(Feature, &str); 3] = [
    (Feature::Device, "VFIO device uAPI"),
    (Feature::Container, "VFIO container"),
    (Feature::Ioas, "IOMMUFD IOAS"),
];

/// Its columns.
const INTERFACES: [(Interface, &str); 2] =
    [(Interface::Group, "VFIO group"), (Interface::Cdev, "VFIO device cdev")];

/// The widths of the table's columns, with the space around the text.
const WIDTHS: [usize; 3] = [19, 21, 22];

impl Answer {
    /// What becomes of a device.
    fn probe(&self, has_iommu: bool) -> Result<DeviceNodes, Errno> {
        self.interfaces.probe(self.question.unsafe_mode, has_iommu)
    }

    /// Whether a device without an IOMMU offers something.
    fn offers(&self, feature: Feature, interface: Interface) -> bool {
        self.probe(false).is_ok_and(|nodes| self.interfaces.offers(nodes, feature, interface))
    }

    /// Whether any device without an IOMMU could be had.
    fn has_noiommu(&self) -> bool {
        self.interfaces.probe(true, false).is_ok()
    }

    /// The nodes that are there without a device.
    fn fixed_nodes(&self) -> Vec<&'static str> {
        let nodes =
            [(self.interfaces.container(), "/dev/vfio/vfio"), (self.interfaces.iommufd(), "/dev/iommu")];
        nodes.into_iter().filter(|(there, _)| *there).map(|(_, path)| path).collect()
    }
}

/// The nodes of a device; N is its number.
fn paths(nodes: DeviceNodes) -> Vec<String> {
    let group = nodes.group.map(|group| format!("/dev/vfio/{}N", group.prefix()));
    let cdev = nodes.cdev.map(|cdev| format!("/dev/vfio/devices/{}N", cdev.prefix()));
    group.into_iter().chain(cdev).collect()
}

/// Why devices without an IOMMU are refused, and what would help.
fn refusal(answer: &Answer) -> (&'static str, &'static str) {
    let Question { options, mode_source, .. } = &answer.question;
    if answer.has_noiommu() {
        let remedy = match mode_source {
            ModeSource::Parameter => {
                "as root: echo Y >/sys/module/vfio/parameters/enable_unsafe_noiommu_mode"
            }
            ModeSource::NoParameter => "as root: modprobe vfio enable_unsafe_noiommu_mode=1",
            ModeSource::Preset | ModeSource::Switch => "--unsafe-mode",
        };
        ("the unsafe mode is off", remedy)
    } else if options.group && options.container.is_none() {
        ("no option is for them", "groups need a container for it: --container vfio; or --cdev-noiommu")
    } else if options.cdev && options.generic_atomic64 {
        ("no option is for them", "cdevs need 64-bit atomics for it: use groups")
    } else {
        ("no option is for them", "see `noiommu config --help`; the engine needs none: `noiommu demo`")
    }
}

/// The answer as JSON.
pub(super) fn json(answer: &Answer) -> Value {
    let Question { options, unsafe_mode, source, mode_source, case } = &answer.question;
    let device = |has_iommu| match answer.probe(has_iommu) {
        Ok(nodes) => json!({ "nodes": paths(nodes), "taints": nodes.taints(), "refused": null }),
        Err(errno) => {
            let (cause, remedy) = refusal(answer);
            json!({
                "nodes": [],
                "taints": false,
                "refused": { "errno": errno.name(), "cause": cause, "remedy": remedy },
            })
        }
    };
    let features: Vec<_> = FEATURES
        .iter()
        .map(|(feature, name)| {
            json!({
                "feature": name,
                "group": answer.offers(*feature, Interface::Group),
                "cdev": answer.offers(*feature, Interface::Cdev),
            })
        })
        .collect();
    json!({
        "source": { "options": source, "unsafe_mode": mode_of(*mode_source) },
        "merged_case": case,
        "options": {
            "group": options.group,
            "group_noiommu": options.group_noiommu,
            "cdev": options.cdev,
            "cdev_noiommu": options.cdev_noiommu,
            "container": options.container.map(container),
            "generic_atomic64": options.generic_atomic64,
        },
        "unsafe_mode": unsafe_mode,
        "features": features,
        "nodes": answer.fixed_nodes(),
        "device_without_iommu": device(false),
        "device_with_iommu": device(true),
    })
}

fn mode_of(source: ModeSource) -> &'static str {
    match source {
        ModeSource::Parameter => "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode",
        ModeSource::NoParameter => "no parameter: VFIO is not loaded, or needs an IOMMU",
        ModeSource::Preset => "the preset",
        ModeSource::Switch => "a switch",
    }
}

fn container(container: Container) -> &'static str {
    match container {
        Container::Vfio => "vfio",
        Container::Iommufd => "iommufd",
    }
}

/// The answer for people, at most 80 columns wide.
pub(super) fn lines(answer: &Answer) -> Vec<String> {
    let bold = |text: &str| styled(Style::new().bold(), text);
    let dimmed = |text: &str| styled(Style::new().dimmed(), text);
    let Question { options, unsafe_mode, source, mode_source, case } = &answer.question;
    let mut lines = vec![bold("VFIO without an IOMMU, as the kernel is configured")];
    lines.push(format!("  {}", dimmed(&format!("options: {source}"))));
    lines.push(format!("  {}", dimmed(&format!("unsafe mode: {}", mode_of(*mode_source)))));
    if let Some(case) = case {
        lines.push(format!("  {}", dimmed(&format!("case {case} of Linux 7.3's six (see --help)"))));
    }
    lines.push(String::new());
    let word = |on: bool| if on { "on" } else { "off" };
    for (name, value, option) in [
        ("groups", word(options.group), "CONFIG_VFIO_GROUP"),
        ("  without an IOMMU", word(options.group_noiommu), "CONFIG_VFIO_GROUP_NOIOMMU"),
        (
            "  in containers",
            options.container.map_or("off", container),
            options.container.unwrap_or(Container::Vfio).option(),
        ),
        ("cdevs", word(options.cdev), "CONFIG_VFIO_DEVICE_CDEV"),
        ("  without an IOMMU", word(options.cdev_noiommu), "CONFIG_VFIO_CDEV_NOIOMMU"),
        ("64-bit atomics", if options.generic_atomic64 { "no" } else { "yes" }, "no CONFIG_GENERIC_ATOMIC64"),
        ("unsafe mode", word(*unsafe_mode), "enable_unsafe_noiommu_mode"),
    ] {
        lines.push(format!("  {name:<22}{value:<10}{}", dimmed(option)));
    }
    lines.push(String::new());
    lines.extend(table(answer));
    if answer.offers(Feature::Ioas, Interface::Cdev) {
        lines.push("  * memory is pinned and mapped; drivers are told its physical addresses".to_owned());
    }
    lines.push(String::new());
    lines.push(bold("Nodes"));
    let fixed = answer.fixed_nodes().into_iter().map(str::to_owned).collect();
    lines.extend(rows("machine", fixed));
    let yellow = AnsiColor::Yellow.on_default();
    match answer.probe(false) {
        Ok(nodes) => {
            lines.extend(rows("device without an IOMMU", paths(nodes)));
            lines.extend(rows("", vec![styled(yellow, "the kernel is tainted (U)")]));
        }
        Err(errno) => {
            let (cause, remedy) = refusal(answer);
            let refused = styled(yellow, &format!("refused ({errno}): {cause}"));
            lines.extend(rows("device without an IOMMU", vec![refused]));
            lines.push(format!("    {} {remedy}", bold("try:")));
            if answer.has_noiommu() && !matches!(mode_source, ModeSource::Preset | ModeSource::Switch) {
                lines.push("    noiommu config --unsafe-mode shows what there would be".to_owned());
            }
        }
    }
    if let Ok(nodes) = answer.probe(true) {
        lines.extend(rows("device with an IOMMU", paths(nodes)));
    }
    lines
}

/// Rows under one title.
fn rows(title: &str, texts: Vec<String>) -> Vec<String> {
    let texts = if texts.is_empty() { vec!["none".to_owned()] } else { texts };
    let titles = std::iter::once(title).chain(std::iter::repeat(""));
    titles.zip(texts).map(|(title, text)| format!("  {title:<26}{text}")).collect()
}

/// The table of features for a device without an IOMMU, framed as the kernel's documentation frames it.
fn table(answer: &Answer) -> Vec<String> {
    let border = |line: char| {
        let cells = WIDTHS.map(|width| line.to_string().repeat(width));
        format!("+{}+", cells.join("+"))
    };
    let row = |cells: [&str; 3], yes: [bool; 3]| {
        let mut text = "|".to_owned();
        for ((cell, width), yes) in cells.into_iter().zip(WIDTHS).zip(yes) {
            let padded = format!(" {cell:<0$}", width - 1);
            let green = AnsiColor::Green.on_default();
            text.push_str(&if yes { styled(green, &padded) } else { padded });
            text.push('|');
        }
        text
    };
    let mut lines = vec![border('-')];
    lines.push(row(["Feature", INTERFACES[0].1, INTERFACES[1].1], [false; 3]));
    lines.push(border('='));
    for (feature, name) in FEATURES {
        let [group, cdev] = INTERFACES.map(|(interface, _)| answer.offers(feature, interface));
        let word = |yes: bool, note: bool| match (yes, note) {
            (true, true) => "Yes*",
            (true, false) => "Yes",
            (false, _) => "No",
        };
        let note = feature == Feature::Ioas;
        lines.push(row([name, word(group, false), word(cdev, note)], [false, group, cdev]));
        lines.push(border('-'));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use noiommu_core::vfio::config::Options;

    fn answer(options: Options, unsafe_mode: bool) -> Answer {
        let question = Question {
            options,
            unsafe_mode,
            source: "/boot/config-6.12.100+deb13-cloud-amd64, changed by switches".to_owned(),
            mode_source: ModeSource::Parameter,
            case: Some(3),
        };
        Answer { interfaces: options.interfaces().unwrap(), question }
    }

    fn plain(answer: &Answer) -> Vec<String> {
        lines(answer).iter().map(|line| anstream::adapter::strip_str(line).to_string()).collect()
    }

    const ALL: Options = Options::merged(true, Some(Container::Vfio), true, false);

    #[test]
    fn the_table_is_the_documentations() {
        let text = plain(&answer(ALL, true)).join("\n");
        let documented = "\
+-------------------+---------------------+----------------------+
| Feature           | VFIO group          | VFIO device cdev     |
+===================+=====================+======================+
| VFIO device uAPI  | Yes                 | Yes                  |
+-------------------+---------------------+----------------------+
| VFIO container    | No                  | No                   |
+-------------------+---------------------+----------------------+
| IOMMUFD IOAS      | No                  | Yes*                 |
+-------------------+---------------------+----------------------+
  * ";
        assert!(text.contains(documented), "{text}");
        for node in ["/dev/vfio/vfio", "/dev/iommu", "/dev/vfio/noiommu-N", "/dev/vfio/devices/noiommu-vfioN"]
        {
            assert!(text.contains(node), "{text}");
        }
        assert!(text.contains("tainted"), "{text}");
    }

    #[test]
    fn no_spurious_group() {
        let options = Options { group_noiommu: false, ..ALL };
        let text = plain(&answer(options, true)).join("\n");
        assert!(!text.contains("noiommu-N"), "{text}");
        assert!(
            text.contains("| VFIO device uAPI  | No                  | Yes                  |"),
            "{text}"
        );
        let value = json(&answer(options, true));
        assert_eq!(value["device_without_iommu"]["nodes"], json!(["/dev/vfio/devices/noiommu-vfioN"]));
        assert_eq!(value["device_with_iommu"]["nodes"], json!(["/dev/vfio/N", "/dev/vfio/devices/vfioN"]));
        assert_eq!(value["device_with_iommu"]["taints"], false);
    }

    #[test]
    fn a_refusal_says_why_and_what_helps() {
        let value = json(&answer(ALL, false));
        let refused = &value["device_without_iommu"]["refused"];
        assert_eq!(refused["errno"], "EINVAL");
        assert!(refused["cause"].as_str().unwrap().contains("unsafe mode"));
        assert_eq!(
            value["features"][0],
            json!({ "feature": "VFIO device uAPI", "group": false, "cdev": false })
        );
        // An option is missing, so the unsafe mode would not help.
        let value = json(&answer(Options { group_noiommu: false, cdev_noiommu: false, ..ALL }, true));
        assert!(value["device_without_iommu"]["refused"]["cause"].as_str().unwrap().contains("no option"));
    }

    #[test]
    fn nothing_is_wider_than_a_terminal() {
        const CONTAINERS: [Option<Container>; 3] = [None, Some(Container::Vfio), Some(Container::Iommufd)];
        let mut seen = 0;
        for bits in 0..32_u32 {
            for container in CONTAINERS {
                let bit = |at: u32| bits >> at & 1 == 1;
                let options = Options {
                    group: bit(0),
                    group_noiommu: bit(1),
                    cdev: bit(2),
                    cdev_noiommu: bit(3),
                    container,
                    generic_atomic64: bit(4),
                };
                if options.interfaces().is_err() {
                    continue;
                }
                for mode in [false, true] {
                    for line in plain(&answer(options, mode)) {
                        assert!(line.chars().count() <= 80, "{} columns: {line}", line.chars().count());
                    }
                }
                seen += 1;
            }
        }
        assert!(seen > 20);
    }
}
