//! What devices are called: by the machine's pci.ids where it has one, else by their classes.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;
use pciid_parser::Database;

/// Where distributions put it.
const PLACES: [&str; 4] = [
    "usr/share/misc/pci.ids",
    "usr/share/hwdata/pci.ids",
    "usr/share/misc/pci.ids.gz",
    "usr/share/hwdata/pci.ids.gz",
];

/// The names.
pub(super) struct Names(Option<Database>);

impl Names {
    /// Those of the machine whose files are below `root`.
    pub(super) fn look(root: &Path) -> Self {
        let read = |place: &str| {
            let file = File::open(root.join(place)).ok()?;
            let reader: Box<dyn Read> =
                if place.ends_with(".gz") { Box::new(GzDecoder::new(file)) } else { Box::new(file) };
            Database::parse_db(reader).ok()
        };
        Self(PLACES.into_iter().find_map(read))
    }

    /// Whether there is a file.
    pub(super) fn is_known(&self) -> bool {
        self.0.is_some()
    }

    /// What devices of a class are.
    pub(super) fn class(&self, class: u32) -> String {
        let [_, base, sub, _] = class.to_be_bytes();
        let named = self.0.as_ref().and_then(|names| {
            let class = names.classes.get(&base)?;
            Some(class.subclasses.get(&sub).map_or(&class.name, |sub| &sub.name).clone())
        });
        named.unwrap_or_else(|| base_class(base).to_owned())
    }

    /// Vendor and device, `None` where the file has no such vendor.
    pub(super) fn device(&self, vendor: u16, device: u16) -> Option<String> {
        let vendor = self.0.as_ref()?.vendors.get(&vendor)?;
        let device = match vendor.devices.get(&device) {
            Some(device) => device.name.clone(),
            None => format!("device {device:04x}"),
        };
        Some(format!("{} {device}", vendor.name))
    }
}

/// The base classes of the *PCI Code and ID Assignment Specification*.
fn base_class(base: u8) -> &'static str {
    match base {
        0x00 => "Unclassified",
        0x01 => "Storage",
        0x02 => "Network",
        0x03 => "Display",
        0x04 => "Multimedia",
        0x05 => "Memory",
        0x06 => "Bridge",
        0x07 => "Communication",
        0x08 => "System peripheral",
        0x09 => "Input",
        0x0a => "Docking station",
        0x0b => "Processor",
        0x0c => "Serial bus",
        0x0d => "Wireless",
        0x0e => "Intelligent I/O",
        0x0f => "Satellite",
        0x10 => "Encryption",
        0x11 => "Signal processing",
        0x12 => "Accelerator",
        0x13 => "Instrumentation",
        0x40 => "Coprocessor",
        _ => "Unassigned",
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;

    use super::*;

    const IDS: &str = "# A few of them\n\
        1b36  Red Hat, Inc.\n\t0010  QEMU NVM Express Controller\n\t\t1af4 1100  QEMU Virtual Machine\n\
        C 01  Mass storage controller\n\t08  Non-Volatile memory controller\n\t\t02  NVM Express\n";

    #[test]
    fn by_the_file_by_the_compressed_file_and_by_the_class() {
        let root = std::env::temp_dir().join(format!("noiommu-ids-{}", std::process::id()));
        fs::create_dir_all(root.join("usr/share/misc")).unwrap();
        let names = Names::look(&root);
        assert!(!names.is_known());
        assert_eq!(names.class(0x010802), "Storage");
        assert_eq!(names.class(0x1f0000), "Unassigned");
        assert_eq!(names.device(0x1b36, 0x10), None);

        let file = File::create(root.join("usr/share/misc/pci.ids.gz")).unwrap();
        let mut gzip = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        gzip.write_all(IDS.as_bytes()).unwrap();
        gzip.finish().unwrap();
        for _ in 0..2 {
            let names = Names::look(&root);
            assert!(names.is_known());
            assert_eq!(names.class(0x010802), "Non-Volatile memory controller");
            assert_eq!(names.class(0x010100), "Mass storage controller");
            assert_eq!(names.class(0x020000), "Network");
            assert_eq!(
                names.device(0x1b36, 0x10).as_deref(),
                Some("Red Hat, Inc. QEMU NVM Express Controller")
            );
            assert_eq!(names.device(0x1b36, 0x11).as_deref(), Some("Red Hat, Inc. device 0011"));
            assert_eq!(names.device(0x8086, 0x10), None);
            fs::write(root.join("usr/share/misc/pci.ids"), IDS).unwrap();
        }
        fs::remove_dir_all(&root).unwrap();
    }
}
