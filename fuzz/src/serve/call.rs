//! Arguments of calls: structures whose fields are given values by what their names say.

use arbitrary::Arbitrary;
use noiommu_uapi::{Argument as Takes, CALLS, Field, Kind};

use super::program::{ARENA, Program};

/// An argument.
#[derive(Arbitrary, Debug)]
pub(super) struct Argument {
    /// One value a field, then for what follows the structure.
    values: Vec<Value>,
    /// How much longer than it is the structure says to be.
    longer: i8,
    /// Not at the beginning of the arena but there.
    elsewhere: Option<u16>,
}

/// A value, to which the field's name says more.
#[derive(Arbitrary, Debug, Clone, Copy)]
enum Value {
    /// What such a field is most of the time.
    Fitting(u8),
    Small(u8),
    Bit(u8),
    Pages(u8),
    Any(u64),
}

/// Writes the argument of the `number`-th call; answers the request and the argument.
pub(super) fn prepare(program: &Program, number: u8, argument: &Argument) -> (u32, u64) {
    let call = &CALLS[usize::from(number) % CALLS.len()];
    let mut values = argument.values.iter().copied().chain(std::iter::repeat(Value::Fitting(0)));
    let mut next = || values.next().unwrap_or(Value::Fitting(0));
    let at = u64::from(argument.elsewhere.unwrap_or(0)) % ARENA;
    let address = program.arena.base() + at;
    match call.argument {
        Takes::None => return (call.number, 0),
        Takes::Value => return (call.number, number_of(program, "value", next())),
        Takes::Descriptor => {
            let descriptor = number_of(program, "fd", next()) as i32;
            program.arena.put(at, &descriptor.to_ne_bytes());
        }
        Takes::Number => program.arena.put(at, &(number_of(program, "number", next()) as u32).to_ne_bytes()),
        Takes::Text => {
            let which = number_of(program, "text", next()) as u8;
            program.arena.put(at, program.device_name(which).as_bytes());
        }
        Takes::Structure { layout, .. } => {
            let mut bytes = vec![0; layout.size as usize];
            for field in layout.fields {
                let value = number_of(program, field.name, next());
                put(&mut bytes, field, value);
            }
            let size = (bytes.len() as u32).wrapping_add_signed(argument.longer.into());
            if let Some(first) = bytes.first_chunk_mut() {
                *first = size.to_ne_bytes();
            }
            // What follows: descriptors, most of the time, as of interrupts.
            for value in argument.values.iter().skip(layout.fields.len()).take(16) {
                bytes.extend((number_of(program, "fd", *value) as u32).to_ne_bytes());
            }
            program.arena.put(at, &bytes);
        }
    }
    (call.number, address)
}

fn put(bytes: &mut [u8], field: &Field, value: u64) {
    // What is longer than a number is left as zeros.
    if !matches!(field.kind, Kind::Unsigned | Kind::Signed) {
        return;
    }
    let (start, length) = (field.offset as usize, field.size as usize);
    if let Some(place) = bytes.get_mut(start..start + length) {
        place.copy_from_slice(&value.to_ne_bytes()[..length.min(8)]);
    }
}

/// The number that a field of this name gets.
fn number_of(program: &Program, name: &str, value: Value) -> u64 {
    let base = program.arena.base();
    match value {
        Value::Small(number) => number.into(),
        Value::Bit(bit) => 1 << (bit % 64),
        Value::Pages(pages) => u64::from(pages % 32) << 12,
        Value::Any(number) => number,
        Value::Fitting(number) => match name {
            "user_va" | "vaddr" => base + (u64::from(number % 16) << 12),
            "fd" | "iommufd" | "container" => program.descriptor(number) as u32 as u64,
            // Pointers: into the second page of the arena.
            "data_uptr" | "allowed_iovas" | "token_uuid_ptr" | "data" | "out_fault_fd" => {
                base + 0x1000 + u64::from(number)
            }
            "length" | "size" | "src_iova" | "dst_iova" | "iova" => u64::from(number % 16) << 12,
            // Ids begin at 1.
            name if name.ends_with("_id") || name == "id" => u64::from(number % 8),
            "flags" => u64::from(number),
            _ => u64::from(number % 8),
        },
    }
}
