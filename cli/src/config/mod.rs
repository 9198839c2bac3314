//! `noiommu config`: which VFIO interfaces a kernel has, as a function of its configuration.

pub(crate) mod machine;
mod render;

use std::path::Path;
use std::process::ExitCode;

use clap::ValueEnum;
use noiommu_core::vfio::config::{ConfigError, Container, Interfaces, Options};

use crate::ui::print_lines;

/// Arguments of `noiommu config`.
#[derive(Debug, Default, clap::Args)]
#[command(
    after_help = "Without --preset it starts from what the running kernel has. Every switch has a contrary: --no-group,\n\
    --no-cdev-noiommu, --no-unsafe-mode, ... The last one counts.\n\n\
    The presets are the six cases of Linux 7.3, which has one option for no-IOMMU (CONFIG_VFIO_NOIOMMU):\n\n  \
    case      groups  container  cdevs   no-IOMMU\n  \
    merged-1  on      on         off     groups\n  \
    merged-2  on      off        off     none: groups would be of no use without a container\n  \
    merged-3  on      on         on      groups, and cdevs unless --generic-atomic64\n  \
    merged-4  on      off        on      none, as in case 2; cdevs alone need groups off\n  \
    merged-5  off     -          on      cdevs, unless --generic-atomic64\n  \
    merged-6  off     -          off     none\n\n\
    Exit codes:\n  \
    0  such a kernel can be\n  \
    1  an option lacks what it needs\n  \
    2  wrong arguments\n\n\
    Examples:\n  \
    noiommu config                                   this machine\n  \
    noiommu config --preset merged                   Linux 7.3 with everything\n  \
    noiommu config --preset merged --no-group        the same with cdevs only\n  \
    noiommu config --preset merged --no-group-noiommu\n      \
    groups for devices with an IOMMU, cdevs for all: no noiommu-N node"
)]
pub(crate) struct Arguments {
    /// Print the result as one JSON object, and nothing else
    #[arg(long)]
    json: bool,
    /// Start from Linux 7.3, not from this machine: merged (all on, as merged-3), merged-1 to merged-6
    #[arg(long, value_name = "PRESET", value_parser = parse_preset)]
    preset: Option<u8>,
    /// Groups: /dev/vfio/N
    #[arg(long, overrides_with = "no_group")]
    group: bool,
    #[arg(long, hide = true, overrides_with = "group")]
    no_group: bool,
    /// Groups of devices without an IOMMU: /dev/vfio/noiommu-N
    #[arg(long, overrides_with = "no_group_noiommu")]
    group_noiommu: bool,
    #[arg(long, hide = true, overrides_with = "group_noiommu")]
    no_group_noiommu: bool,
    /// Devices as files: /dev/vfio/devices/vfioN
    #[arg(long, overrides_with = "no_cdev")]
    cdev: bool,
    #[arg(long, hide = true, overrides_with = "cdev")]
    no_cdev: bool,
    /// The same of devices without an IOMMU: /dev/vfio/devices/noiommu-vfioN
    #[arg(long, overrides_with = "no_cdev_noiommu")]
    cdev_noiommu: bool,
    #[arg(long, hide = true, overrides_with = "cdev_noiommu")]
    no_cdev_noiommu: bool,
    /// Who provides containers, /dev/vfio/vfio
    #[arg(long, value_name = "WHO", overrides_with = "no_container")]
    container: Option<Provider>,
    #[arg(long, hide = true, overrides_with = "container")]
    no_container: bool,
    /// A machine without 64-bit compare-and-swap
    #[arg(long, overrides_with = "no_generic_atomic64")]
    generic_atomic64: bool,
    #[arg(long, hide = true, overrides_with = "generic_atomic64")]
    no_generic_atomic64: bool,
    /// The parameter enable_unsafe_noiommu_mode is set when a device comes to VFIO
    #[arg(long, overrides_with = "no_unsafe_mode")]
    unsafe_mode: bool,
    #[arg(long, hide = true, overrides_with = "unsafe_mode")]
    no_unsafe_mode: bool,
}

/// Who provides containers.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Provider {
    /// Nobody
    None,
    /// VFIO
    Vfio,
    /// Iommufd, in VFIO's place
    Iommufd,
}

impl Provider {
    fn container(self) -> Option<Container> {
        match self {
            Self::None => None,
            Self::Vfio => Some(Container::Vfio),
            Self::Iommufd => Some(Container::Iommufd),
        }
    }
}

/// The case of Linux 7.3's matrix that a preset's name means.
fn parse_preset(text: &str) -> Result<u8, String> {
    let case = match text.strip_prefix("merged") {
        Some("") => Some(3),
        Some(case) => case.strip_prefix('-').and_then(|case| case.parse().ok()),
        None => None,
    };
    case.filter(|case| (1..=6).contains(case))
        .ok_or_else(|| "write merged, or merged-1 to merged-6".to_owned())
}

/// The case of Linux 7.3's matrix that options are.
fn case_of(options: Options) -> u8 {
    match (options.group, options.container.is_some(), options.cdev) {
        (true, true, false) => 1,
        (true, false, false) => 2,
        (true, true, true) => 3,
        (true, false, true) => 4,
        (false, _, true) => 5,
        (false, _, false) => 6,
    }
}

/// Where the unsafe mode comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum ModeSource {
    /// VFIO's parameter.
    Parameter,
    /// There is none: VFIO is not loaded, or cannot do without an IOMMU.
    NoParameter,
    /// A preset, which shows what there would be.
    Preset,
    /// The command line.
    Switch,
}

/// What is to be resolved, and where it comes from.
#[derive(Debug, PartialEq)]
pub(crate) struct Question {
    pub(crate) options: Options,
    pub(crate) unsafe_mode: bool,
    /// Where the options come from.
    pub(crate) source: String,
    /// Where the unsafe mode comes from.
    pub(crate) mode_source: ModeSource,
    /// The case of the matrix, for a preset that was left such a case.
    case: Option<u8>,
}

/// The answer to it.
struct Answer {
    question: Question,
    interfaces: Interfaces,
}

/// Resolves and prints.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let question = arguments.question(|| machine::look(Path::new("/"), &noiommu::kernel_release()));
    match question.options.interfaces() {
        Ok(interfaces) => {
            let answer = Answer { question, interfaces };
            if arguments.json {
                print_lines(&[render::json(&answer)]);
            } else {
                print_lines(&render::lines(&answer));
            }
            ExitCode::SUCCESS
        }
        Err(error) => crate::tell_failure(
            arguments.json,
            &crate::Failure {
                kind: "Configuration",
                errno: Some("EINVAL"),
                cause: &format!("{error} ({})", question.source),
                remedy: Some(&format!("{} ({})", error.remedy(), switches(error))),
            },
        ),
    }
}

/// The switches that help.
fn switches(error: ConfigError) -> &'static str {
    match error {
        ConfigError::ContainerWithoutGroup(_) => "--group, --no-container",
        ConfigError::GroupNoiommuWithoutGroup => "--group, --no-group-noiommu",
        ConfigError::GroupNoiommuWithoutContainer => "--container vfio, --no-group-noiommu",
        ConfigError::CdevNoiommuWithoutCdev => "--cdev, --no-cdev-noiommu",
        ConfigError::CdevNoiommuWithGenericAtomic64 => "--no-cdev-noiommu",
    }
}

/// What a switch and its contrary say.
fn chosen(on: bool, off: bool) -> Option<bool> {
    if on || off { Some(on) } else { None }
}

impl Arguments {
    /// What was asked; `machine` is looked at where there is no preset.
    fn question(&self, machine: impl FnOnce() -> Question) -> Question {
        let group = chosen(self.group, self.no_group);
        let group_noiommu = chosen(self.group_noiommu, self.no_group_noiommu);
        let cdev = chosen(self.cdev, self.no_cdev);
        let cdev_noiommu = chosen(self.cdev_noiommu, self.no_cdev_noiommu);
        let container = if self.no_container { Some(None) } else { self.container.map(Provider::container) };
        let generic_atomic64 = chosen(self.generic_atomic64, self.no_generic_atomic64);
        let mut question = match self.preset {
            Some(case) => {
                let options = Options::merged(
                    group.unwrap_or(case <= 4),
                    container.unwrap_or((case % 2 == 1).then_some(Container::Vfio)),
                    cdev.unwrap_or(matches!(case, 3..=5)),
                    generic_atomic64.unwrap_or(false),
                );
                Question {
                    options,
                    unsafe_mode: true,
                    source: "Linux 7.3".to_owned(),
                    mode_source: ModeSource::Preset,
                    case: Some(case_of(options)),
                }
            }
            None => {
                let mut question = machine();
                let options = &mut question.options;
                options.group = group.unwrap_or(options.group);
                options.cdev = cdev.unwrap_or(options.cdev);
                options.container = container.unwrap_or(options.container);
                options.generic_atomic64 = generic_atomic64.unwrap_or(options.generic_atomic64);
                question
            }
        };
        let derived = question.options;
        let options = &mut question.options;
        options.group_noiommu = group_noiommu.unwrap_or(options.group_noiommu);
        options.cdev_noiommu = cdev_noiommu.unwrap_or(options.cdev_noiommu);
        if *options != derived {
            question.case = None;
        }
        let switched = [group, group_noiommu, cdev, cdev_noiommu, generic_atomic64];
        if switched.iter().any(Option::is_some) || container.is_some() {
            question.source.push_str(", changed by switches");
        }
        if let Some(mode) = chosen(self.unsafe_mode, self.no_unsafe_mode) {
            question.unsafe_mode = mode;
            question.mode_source = ModeSource::Switch;
        }
        question
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parsed(arguments: &[&str]) -> Arguments {
        Command::try_parse_from([&["config"], arguments].concat()).unwrap().arguments
    }

    /// A machine whose groups have it all.
    fn machine() -> Question {
        Question {
            options: Options {
                group: true,
                group_noiommu: true,
                container: Some(Container::Vfio),
                ..Options::NONE
            },
            unsafe_mode: false,
            source: "a test".to_owned(),
            mode_source: ModeSource::Parameter,
            case: None,
        }
    }

    fn asked(arguments: &[&str]) -> Question {
        parsed(arguments).question(machine)
    }

    #[test]
    fn the_presets_are_the_six_cases() {
        for case in 1..=6 {
            let question = asked(&["--preset", &format!("merged-{case}")]);
            assert_eq!(question.case, Some(case));
            assert_eq!(case_of(question.options), case);
            assert!(question.unsafe_mode);
            let nodes = question.options.interfaces().unwrap().probe(true, false);
            let has = nodes.ok().map(|nodes| (nodes.group.is_some(), nodes.cdev.is_some()));
            let expected = match case {
                1 => Some((true, false)),
                3 => Some((true, true)),
                5 => Some((false, true)),
                _ => None,
            };
            assert_eq!(has, expected, "case {case}");
        }
        assert_eq!(asked(&["--preset", "merged"]), asked(&["--preset", "merged-3"]));
        for wrong in ["merge", "merged3", "merged-", "merged-0", "merged-7", "merged--1"] {
            assert!(Command::try_parse_from(["config", "--preset", wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn switches_change_what_a_preset_derives_from() {
        let question = asked(&["--preset", "merged", "--no-group"]);
        assert_eq!(question.case, Some(5));
        assert_eq!(question.options, Options::merged(false, None, true, false));
        assert_eq!(question.source, "Linux 7.3, changed by switches");
        // No-IOMMU itself stays as it is switched.
        let options = asked(&["--preset", "merged", "--no-group-noiommu"]).options;
        assert!(options.group && !options.group_noiommu && options.cdev_noiommu);
        assert_eq!(asked(&["--preset", "merged", "--no-group-noiommu"]).case, None, "7.3 has no such switch");
        let options = asked(&["--preset", "merged", "--generic-atomic64"]).options;
        assert!(options.group_noiommu && !options.cdev_noiommu);
        let options = asked(&["--preset", "merged", "--no-container"]).options;
        assert!(!options.group_noiommu && !options.cdev_noiommu, "case 4");
    }

    #[test]
    fn switches_change_what_the_machine_has() {
        assert_eq!(asked(&[]), machine());
        let question = asked(&["--cdev", "--cdev-noiommu", "--container", "iommufd", "--unsafe-mode"]);
        let options = Options {
            cdev: true,
            cdev_noiommu: true,
            container: Some(Container::Iommufd),
            ..machine().options
        };
        assert_eq!((question.options, question.unsafe_mode), (options, true));
        assert_eq!(
            (&*question.source, question.mode_source),
            ("a test, changed by switches", ModeSource::Switch)
        );
        assert_eq!(asked(&["--container", "vfio", "--no-container"]).options.container, None);
        assert!(asked(&["--no-group", "--group"]).options.group);
        assert!(!asked(&["--group", "--no-group"]).options.group);
    }

    #[test]
    fn a_refusal_says_which_switches_help() {
        let errors = [
            (&["--no-group", "--no-group-noiommu"][..], "--no-container"),
            (&["--no-group", "--no-container"], "--no-group-noiommu"),
            (&["--no-container"], "--container vfio"),
            (&["--cdev-noiommu"], "--cdev"),
            (&["--cdev", "--cdev-noiommu", "--generic-atomic64"], "--no-cdev-noiommu"),
        ];
        for (arguments, switch) in errors {
            let error = asked(arguments).options.interfaces().unwrap_err();
            assert!(switches(error).contains(switch), "{arguments:?}: {error}");
            // And they do help.
            for switch in switches(error).split(", ") {
                let again: Vec<&str> = arguments.iter().copied().chain(switch.split(' ')).collect();
                assert_ne!(asked(&again).options.interfaces(), Err(error), "{again:?}");
            }
        }
    }

    #[test]
    fn the_help_names_every_switch_once() {
        let help = Command::command().render_long_help().to_string();
        for switch in [
            "--group\n",
            "--group-noiommu\n",
            "--cdev\n",
            "--cdev-noiommu\n",
            "--container",
            "--unsafe-mode\n",
        ] {
            assert!(help.contains(switch), "{switch}");
        }
        // Contraries are told of, not listed.
        assert!(help.contains("merged-4") && !help.contains("--no-cdev\n"));
    }
}
