//! Guests: an emulated machine with a kernel of choice runs our programs, and the host bears witness.
//!
//! Data flows one way: [`kernel`] and [`refkernel`] find or build what to boot (through [`apt`]), [`pack`] gathers what runs in
//! it and [`initramfs`] writes it down, [`guest`] runs it: [`qemu`] starts the machine, [`witness`] listens to the guest and
//! looks into its memory through [`qmp`].

mod apt;
mod bench;
mod clock;
mod conformance;
mod doctor;
mod driver;
mod fuzz;
mod grounds;
mod guest;
mod initramfs;
mod kconfig;
mod kernel;
mod matrix;
mod modules;
mod nvme;
mod pack;
mod package;
mod packages;
mod qemu;
mod qmp;
mod refkernel;
pub(crate) mod soak;
mod virtio;
mod witness;

use anyhow::{Result, ensure};
use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};

pub(crate) use self::apt::install;
pub(crate) use self::bench::{Bench, bench, holds as bench_holds};
pub(crate) use self::conformance::{conformance, golden};
pub(crate) use self::doctor::doctor;
pub(crate) use self::driver::{Driver, driver};
pub(crate) use self::fuzz::{Fuzz, fuzz};
pub(crate) use self::guest::Options;
use self::guest::Scenario;
use self::kernel::Kernel;
pub(crate) use self::matrix::{Matrix, matrix};
pub(crate) use self::nvme::{Nvme, nvme};
use self::pack::Tree;
pub(crate) use self::package::package;
pub(crate) use self::packages::unpacked;
pub(crate) use self::refkernel::Variant;
pub(crate) use self::virtio::{Virtio, virtio};
use crate::project::Project;

/// What every guest needs of the host, as Debian's packages. libc6-dev has the libc.a that static programs link, ipxe-qemu the
/// ROMs of network cards.
const HOST_PACKAGES: [&str; 5] = ["qemu-system-x86", "busybox-static", "gcc", "ipxe-qemu", "libc6-dev"];

/// Options of guests with a stock kernel.
#[derive(Args, Debug, Default)]
pub(crate) struct Stock {
    /// Boot the kernel of this suite of the machine's mirror, such as `backports`
    #[arg(long)]
    suite: Option<String>,

    #[command(flatten)]
    run: Options,
}

impl Stock {
    /// The defaults, with the kernel of a suite.
    pub(crate) fn of_suite(suite: &str) -> Self {
        Self { suite: Some(suite.to_owned()), ..Self::default() }
    }
}

/// Options of guests whose programs use the uAPI, on any kernel.
#[derive(Args, Debug)]
pub(crate) struct OnKernel {
    /// The kernel: one built from source, or the distribution's
    #[arg(long, default_value = "reference")]
    kernel: Choice,

    /// Through the preload library, instead of the kernel itself
    #[arg(long)]
    preload: bool,

    #[command(flatten)]
    stock: Stock,
}

impl OnKernel {
    /// The defaults, with this kernel, natively or through the preload library.
    pub(crate) fn new(kernel: Choice, preload: bool) -> Self {
        Self { kernel, preload, stock: Stock::default() }
    }

    /// The defaults, with the kernel of a suite of the distribution.
    pub(crate) fn of_suite(suite: &str) -> Self {
        Self { kernel: Choice::Stock, preload: false, stock: Stock::of_suite(suite) }
    }

    /// What the guest boots.
    fn kernel(&self, project: &Project) -> Result<Kernel> {
        apt::install(&HOST_PACKAGES)?;
        match self.kernel {
            Choice::Stock => kernel::stock(project, self.stock.suite.as_deref()),
            Choice::Built(variant) => {
                ensure!(self.stock.suite.is_none(), "--suite chooses among stock kernels: --kernel stock");
                refkernel::get(project, variant)
            }
        }
    }

    /// What the guest has on board besides its programs, and the words for its script.
    fn prepare(&self, project: &Project, words: &[&'static str]) -> Result<(Tree, Vec<&'static str>)> {
        let (mut files, mut words) = (Tree::default(), words.to_vec());
        if self.preload {
            let [library, program] = PRELOAD;
            files.add_libraries(&pack::build(project, &[library])?)?;
            files.add_programs(&pack::build(project, &[program])?)?;
            // The script sees the library; this is for those who read where the logs are.
            words.push("preload");
        }
        Ok((files, words))
    }
}

/// What serves programs where the kernel does not, and the program that gives the opt-in for it: package and file.
const PRELOAD: [(&str, &str); 2] = [("noiommu-preload", "libnoiommu_preload.so"), ("noiommu-cli", "noiommu")];

/// A kernel that a guest can be run on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Choice {
    /// The distribution's.
    Stock,
    /// One built from source.
    Built(Variant),
}

impl ValueEnum for Choice {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self::Built(Variant::Reference),
            Self::Built(Variant::Legacy),
            Self::Built(Variant::CdevOnly),
            Self::Stock,
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            Self::Stock => Some(PossibleValue::new("stock").help("The distribution's own")),
            Self::Built(variant) => variant.to_possible_value(),
        }
    }
}

/// An edu device with the whole 48-bit range of addresses; its default is 28 bits.
const EDU: &str = "edu,dma_mask=0xffffffffffff";

/// An NVMe controller with the drive `nvme`.
const NVME: &str = "nvme,drive=nvme,serial=noiommu-nvme";

/// Turns VFIO's no-IOMMU mode on from the start. Kernels without VFIO ignore it.
const UNSAFE_NOIOMMU: &str = "vfio.enable_unsafe_noiommu_mode=1";

/// The programs of the scenarios on stock kernels: package and binary.
const STOCK_PROGRAMS: [(&str, &str); 2] = [("noiommu-guest", "noiommu-guest"), ("noiommu-cli", "noiommu")];

/// Prints the path of a variant's image.
pub(crate) fn kernel_image(project: &Project, variant: Variant) -> Result<()> {
    println!("{}", refkernel::get(project, variant)?.image.display());
    Ok(())
}

/// A stock kernel and an edu device.
pub(crate) fn stock_edu(project: &Project, options: &Stock) -> Result<()> {
    on_stock_kernel(project, options, "stock-edu", &[EDU], &[])
}

/// The same behind a real IOMMU, where physical addresses are no use.
pub(crate) fn stock_iommu(project: &Project, options: &Stock) -> Result<()> {
    on_stock_kernel(project, options, "stock-iommu", &["intel-iommu", EDU], &["intel_iommu=on"])
}

fn on_stock_kernel(
    project: &Project,
    options: &Stock,
    name: &'static str,
    devices: &'static [&'static str],
    append: &'static [&'static str],
) -> Result<()> {
    apt::install(&HOST_PACKAGES)?;
    let kernel = kernel::stock(project, options.suite.as_deref())?;
    let scenario =
        Scenario { name, devices, append, witnessed: true, arguments: Vec::new(), drives: &[], nets: &[] };
    let mut files = Tree::default();
    files.add_programs(&pack::build_static(project, &STOCK_PROGRAMS)?)?;
    guest::run(project, &scenario, &kernel, files, &options.run)?;
    Ok(())
}

/// Devices of several kinds on one IOAS: one behind an IOMMU, and two without, one of them for sysfs.
pub(crate) fn mixed(project: &Project, options: &OnKernel) -> Result<()> {
    ensure!(!options.preload, "this is about the kit, not about the preload library");
    let kernel = options.kernel(project)?;
    let mut files = Tree::default();
    files.add_programs(&pack::build_static(project, &STOCK_PROGRAMS)?)?;
    let scenario = Scenario {
        name: "mixed",
        arguments: Vec::new(),
        // What is on the second root bus goes past the IOMMU. Conventional devices, so they sit behind a bridge there.
        devices: &[
            "intel-iommu",
            EDU,
            "pxb-pcie,id=past,bus_nr=64,bus=pcie.0,bypass_iommu=on",
            "pcie-root-port,id=port1,bus=past,chassis=1",
            "pcie-root-port,id=port2,bus=past,chassis=2",
            "edu,bus=port1,dma_mask=0xffffffffffff",
            "edu,bus=port2,dma_mask=0xffffffffffff",
        ],
        drives: &[],
        nets: &[],
        // No interrupt remapping, which would need one of QEMU's split interrupt controllers.
        append: &[
            UNSAFE_NOIOMMU,
            "intel_iommu=on",
            "iommufd.allow_unsafe_interrupts=1",
            "vfio_iommu_type1.allow_unsafe_interrupts=1",
        ],
        witnessed: true,
    };
    guest::run(project, &scenario, &kernel, files, &options.stock.run)?;
    Ok(())
}

/// A C program that knows the uAPI only asks an NVMe controller who it is, by DMA.
pub(crate) fn nvme_identify(project: &Project, options: &OnKernel) -> Result<()> {
    let kernel = options.kernel(project)?;
    let (mut files, arguments) = options.prepare(project, &[])?;
    files.add_programs(&[pack::compile_c(project, "nvme_identify")?])?;
    let scenario = Scenario {
        name: "nvme-identify",
        arguments,
        devices: &[NVME],
        drives: &["nvme"],
        nets: &[],
        append: &[UNSAFE_NOIOMMU],
        witnessed: false,
    };
    guest::run(project, &scenario, &kernel, files, &options.stock.run)?;
    Ok(())
}
