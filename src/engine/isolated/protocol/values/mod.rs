//! Encoding and decoding of a call's arguments and results: Python values as bytes.
//!
//! | tag | value | bytes after the tag |
//! | --- | --- | --- |
//! | `N` `T` `F` | `None`, `True`, `False` | none |
//! | `i` `I` | an int that fits into 64 bits; one that does not | 8; its hexadecimal digits as a text |
//! | `d` | a float | 8 |
//! | `s` `u` `b` | a str, one with lone surrogates, bytes | length, UTF-8 (with surrogates) or bytes |
//! | `l` `t` | a list, a tuple | count, values |
//! | `m` | a dict | count, keys and values |
//! | `M` | a list of vectors of one length | rows, columns, f32 row by row |
//! | `V` | a vector | columns, f32 |
//! | `o` | any other object of a result | module and name of its class (texts), count, names and values of its attributes |
//! | `x` | any other argument, including instances of subclasses of the above | see `stand_ins.rs` |
//!
//! A text is a length and UTF-8. Counts and lengths are u32; all numbers are little-endian. A conversion lets
//! other threads have the interpreter every two milliseconds, so that a large batch does not stall them. The caller's
//! lists are read by index, because another thread may change them in the meantime.
//!
//! | file | what lives there |
//! | --- | --- |
//! | `call.rs` | calls as bytes, and back |
//! | `encode.rs`, `decode.rs` | the encoder and the decoder |
//! | `stand_ins.rs` | arguments of classes that the engine process does not have |
//! | `foreign.rs` | these classes and their properties |
//! | `exceptions.rs` | encoding and decoding of exceptions |
//! | `classes.rs` | the classes of results, and their attributes |
//! | `numpy.rs` | conversion of numpy arrays to f32 and back |
//! | `peek.rs` | reading parts of an encoded call without Python |
//! | `limits.rs` | the limits of a conversion, and how it shares the interpreter |

mod call;
mod classes;
mod decode;
mod encode;
mod exceptions;
mod foreign;
mod limits;
mod numpy;
mod peek;
mod stand_ins;

pub use call::{DecodedCall, decode_call, encode_call};
pub use decode::{Decoder, Matrices};
pub use encode::Encoder;
pub use exceptions::{decode_exception, encode_exception};
pub use peek::{items_at, name_of};
