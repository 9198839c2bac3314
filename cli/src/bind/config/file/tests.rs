//! What the file may say, what it may not, and that no text at all brings the reader down.

use proptest::prelude::*;

use super::*;

fn one(text: &str) -> Line {
    let mut config = parse(text).unwrap();
    assert_eq!(config.lines.len(), 1, "{text}");
    config.lines.remove(0)
}

fn mistakes(text: &str) -> Vec<(usize, String)> {
    parse(text).unwrap_err().into_iter().map(|mistake| (mistake.line, mistake.cause)).collect()
}

#[test]
fn lines_say_what_is_bound() {
    assert_eq!(parse("").unwrap(), Config::default());
    assert_eq!(parse("# enable\n\n   \t# bind\n").unwrap(), Config::default());
    assert!(parse("enable # the opt-in\nenable").unwrap().enable);
    let text = "enable\nbind address=00:04.0\n\tbind  id=1B36:0010 class=0x0108 provider=sysfs # the disk";
    let config = parse(text).unwrap();
    assert!(config.enable);
    let told: Vec<_> = config.lines.iter().map(|line| (line.number, line.text())).collect();
    let expected = [
        (2, "bind address=0000:00:04.0".to_owned()),
        (3, "bind id=1b36:0010 class=0108 provider=sysfs".to_owned()),
    ];
    assert_eq!(told, expected);
    assert_eq!(one("bind address=0001:0A:1f.7").address.as_deref(), Some("0001:0a:1f.7"));
    assert_eq!(one("bind class=0c0330").class.as_deref(), Some("0c0330"));
}

#[test]
fn mistakes_name_their_lines_all_of_them() {
    let text = "enable now\nbind\n# fine\nbnid id=1:2\nbind id=8086:10d3\nbind id=8086:10D3 provider=uio\n";
    let lines: Vec<_> = mistakes(text).into_iter().map(|(line, _)| line).collect();
    assert_eq!(lines, [1, 2, 4, 6]);
    for (text, cause) in [
        ("enable now", "stands alone"),
        ("Bind id=8086:10d3", "no command"),
        ("bind", "which devices"),
        ("bind provider=uio", "which devices"),
        ("bind 00:04.0", "has no ="),
        ("bind addr=00:04.0", "knows"),
        ("bind address=00:04.0 address=00:05.0", "twice"),
        ("bind address=", "no PCI address"),
        ("bind address=00:20.0", "no PCI address"),
        ("bind address=00:04.8", "no PCI address"),
        ("bind address=0:0:04.0", "no PCI address"),
        ("bind address=../../x", "no PCI address"),
        ("bind id=8086", "no id"),
        ("bind id=8086:*", "no id"),
        ("bind id=+086:10d3", "no id"),
        ("bind class=1", "no class"),
        ("bind class=010", "no class"),
        ("bind class=0x", "no class"),
        ("bind class=0604", "bridges"),
        ("bind class=01 provider=sim", "no provider"),
        ("bind class=01 provider=", "no provider"),
    ] {
        let found = mistakes(text);
        assert!(matches!(&found[..], [(1, told)] if told.contains(cause)), "{text}: {found:?}");
        assert!(parse(text).unwrap_err().iter().all(|mistake| !mistake.remedy.is_empty()));
    }
}

/// Text that is near to what a file says, so that more than the first word is reached.
fn near() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        Just("bind".to_owned()),
        Just("enable".to_owned()),
        "(address|id|class|provider|x)=[0-9a-fA-Fx:.*]{0,13}",
        "(address)=[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\\.[0-7]",
        "id=[0-9a-fA-F]{4}:[0-9a-fA-F]{4}",
        "class=(0x)?([0-9a-f]{2}){1,3}",
        "provider=(uio|sysfs|group|cdev|group-noiommu|cdev-noiommu)",
        "\\PC{0,9}",
    ];
    let separator = prop_oneof![4 => Just(" "), 2 => Just("\n"), 1 => Just("#"), 1 => Just("\t\r\n")];
    prop::collection::vec((word, separator), 0..24)
        .prop_map(|parts| parts.into_iter().map(|(word, separator)| word + separator).collect())
}

proptest! {
    #[test]
    fn any_text_is_read_or_told(text in prop_oneof![near(), "\\PC*", "(?s).*"]) {
        let count = text.lines().count();
        match parse(&text) {
            Ok(config) => {
                // What was read can be written and read again, and is the same.
                let mut plain = if config.enable { "enable\n".to_owned() } else { String::new() };
                for line in &config.lines {
                    prop_assert!(line.number >= 1 && line.number <= count);
                    plain += &format!("{}\n", line.text());
                }
                let again = parse(&plain).unwrap();
                prop_assert_eq!(again.enable, config.enable);
                let texts = |config: &Config| config.lines.iter().map(Line::text).collect::<Vec<_>>();
                prop_assert_eq!(texts(&again), texts(&config));
            }
            Err(mistakes) => {
                prop_assert!(!mistakes.is_empty());
                prop_assert!(mistakes.iter().all(|it| it.line >= 1 && it.line <= count && !it.cause.is_empty()));
                prop_assert!(mistakes.is_sorted_by(|one, other| one.line < other.line));
            }
        }
    }
}
