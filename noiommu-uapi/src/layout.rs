//! Layouts as data, and the macro that defines a structure together with its layout.

use crate::{iommufd, vfio};

/// The layouts of all modules.
const LAYOUTS: &[&[&Layout]] = &[
    iommufd::LAYOUTS,
    iommufd::ioas::LAYOUTS,
    iommufd::hwpt::LAYOUTS,
    iommufd::hardware::LAYOUTS,
    vfio::LAYOUTS,
    vfio::container::LAYOUTS,
    vfio::spapr::LAYOUTS,
    vfio::group::LAYOUTS,
    vfio::device::LAYOUTS,
    vfio::pci::LAYOUTS,
    vfio::gfx::LAYOUTS,
    vfio::feature::LAYOUTS,
];

/// A field of a structure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field {
    /// The kernel's name.
    pub name: &'static str,
    /// The other member where the kernel has a union of two members of one type.
    pub alias: Option<&'static str>,
    /// Bytes from the start of the structure.
    pub offset: u32,
    /// Bytes.
    pub size: u32,
    /// What the bytes are.
    pub kind: Kind,
}

/// What the bytes of a field are; numbers are in the machine's byte order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A number from 0: flags, ids, lengths, addresses, user pointers.
    Unsigned,
    /// A number in two's complement: descriptors.
    Signed,
    /// So many elements of the same kind and size.
    Array(&'static Kind, u32),
    /// A structure in the structure.
    Structure(&'static Layout),
}

/// What follows a structure directly: elements whose number the structure (or its length) tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tail {
    /// The kernel's name.
    pub name: &'static str,
    /// Bytes of one element.
    pub size: u32,
    /// What an element is.
    pub kind: Kind,
}

/// The layout of a structure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// The kernel's name, without `struct`.
    pub name: &'static str,
    /// Bytes, without the tail, which begins there.
    pub size: u32,
    /// The fields, by offset; they leave no byte out.
    pub fields: &'static [Field],
    /// What may follow.
    pub tail: Option<Tail>,
}

impl Layout {
    /// The layouts of all structures: arguments, and what is behind them or read from a file.
    pub fn all() -> impl Iterator<Item = &'static Self> {
        LAYOUTS.iter().copied().flatten().copied()
    }

    /// The layout of the structure that the kernel calls so.
    #[must_use]
    pub fn by_name(name: &str) -> Option<&'static Self> {
        Self::all().find(|layout| layout.name == name)
    }

    /// The field with this name, or this alias.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name || field.alias == Some(name))
    }

    /// Where the field with this name ends. Only for constants: a name that is not there does not compile.
    pub(crate) const fn end_of(&self, name: &str) -> u32 {
        let mut at = 0;
        while at < self.fields.len() {
            let field = &self.fields[at];
            if same(field.name, name) {
                return field.offset + field.size;
            }
            at += 1;
        }
        panic!("no such field");
    }
}

/// A type that a field can have.
pub trait FieldType {
    /// What its bytes are.
    const KIND: Kind;
}

/// A structure of the uAPI.
pub trait Structure: Sized {
    /// Its layout.
    const LAYOUT: &'static Layout;
    /// Its fields, by offset.
    const FIELDS: &'static [Field] = Self::LAYOUT.fields;
}

impl<T: Structure> FieldType for T {
    const KIND: Kind = Kind::Structure(T::LAYOUT);
}

macro_rules! numbers {
    ($($type:ident: $kind:ident),*) => {
        $(impl FieldType for $type {
            const KIND: Kind = Kind::$kind;
        }
        impl<const N: usize> FieldType for [$type; N] {
            const KIND: Kind = Kind::Array(&Kind::$kind, N as u32);
        })*
    };
}
numbers!(u8: Unsigned, u16: Unsigned, u32: Unsigned, u64: Unsigned, i32: Signed);

/// Whether two names are the same, at compile time.
const fn same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() != b.len() {
        return false;
    }
    let mut at = 0;
    while at < a.len() {
        if a[at] != b[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// The name of a field whose Rust name had to be a raw identifier (`r#type`).
pub(crate) const fn plain(name: &'static str) -> &'static str {
    let bytes = name.as_bytes();
    if bytes.len() > 2 && bytes[0] == b'r' && bytes[1] == b'#' { name.split_at(2).1 } else { name }
}

/// Defines structures: `struct Name = kernel_name, size { offset => field: type, ... } + tail: [element]`.
///
/// A field that is a union of two members of one type is `field | alias`. The numbers are what the kernel's header amounts
/// to; the compiler holds the definition against them.
macro_rules! structures {
    ($(
        $(#[$meta:meta])*
        struct $name:ident = $kernel:ident, $size:literal {
            $($(#[$field_meta:meta])* $offset:literal => $field:ident $(| $alias:ident)?: $type:ty,)*
        } $(+ $tail:ident: [$element:ty])?
    )*) => {
        /// The layouts of this module's structures.
        pub(crate) const LAYOUTS: &[&$crate::layout::Layout] =
            &[$(<$name as $crate::layout::Structure>::LAYOUT),*];

        $(
            $(#[$meta])*
            #[doc = ""]
            #[doc = concat!(
                "`struct ", stringify!($kernel), "`, ", stringify!($size), " bytes",
                $(", followed by `", stringify!($tail), ": [", stringify!($element), "]`",)? "."
            )]
            #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
            #[derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)]
            #[repr(C)]
            pub struct $name {
                $(
                    $(#[$field_meta])*
                    $(#[doc = concat!("The kernel has a union here: also `", stringify!($alias), "`.")])?
                    pub $field: $type,
                )*
            }

            const _: () = {
                assert!(size_of::<$name>() == $size);
                $(assert!(core::mem::offset_of!($name, $field) == $offset);)*
            };

            impl $crate::layout::Structure for $name {
                const LAYOUT: &'static $crate::layout::Layout = &$crate::layout::Layout {
                    name: stringify!($kernel),
                    size: $size,
                    fields: &[$($crate::layout::Field {
                        name: $crate::layout::plain(stringify!($field)),
                        alias: $crate::layout::optional!($(stringify!($alias))?),
                        offset: $offset,
                        size: size_of::<$type>() as u32,
                        kind: <$type as $crate::layout::FieldType>::KIND,
                    }),*],
                    tail: $crate::layout::optional!($($crate::layout::Tail {
                        name: stringify!($tail),
                        size: size_of::<$element>() as u32,
                        kind: <$element as $crate::layout::FieldType>::KIND,
                    })?),
                };
            }
        )*
    };
}

/// `Some` of what is there, `None` of nothing.
macro_rules! optional {
    () => {
        None
    };
    ($value:expr) => {
        Some($value)
    };
}
pub(crate) use {optional, structures};
