//! What a call's arguments and results are while they cross: Python's values as bytes, and back.
//!
//! | tag | value | bytes behind the tag |
//! | --- | --- | --- |
//! | `N` `T` `F` | `None`, `True`, `False` | none |
//! | `i` `I` | an int that fits 64 bits; one that does not | 8; its hexadecimal digits as a text |
//! | `d` | a float | 8 |
//! | `s` `u` `b` | a str, one with lone surrogates, bytes | length, UTF-8 (with surrogates) or bytes |
//! | `l` `t` | a list, a tuple | count, values |
//! | `m` | a dict | count, keys and values |
//! | `M` | a list of vectors of one length | rows, columns, f32 row by row |
//! | `V` | a vector | columns, f32 |
//! | `o` | any other object of a result | module and name of its class (texts), count, names and values of its attributes |
//! | `x` | any other argument, also one whose class inherits one of these | see `stand_ins.rs` |
//!
//! Counts and lengths are u32, all numbers are little-endian. Converting gives up the interpreter every few thousand
//! values, so that a large batch stalls nobody; the containers of the caller are read by index, never by an iterator that
//! another thread could pull the floor from under.

//!
//! | file | what lives there |
//! | --- | --- |
//! | `encode.rs`, `decode.rs` | values as bytes, and back |
//! | `stand_ins.rs` | arguments whose class is the app's |
//! | `foreign.rs` | which classes these are, and what is known of each |
//! | `exceptions.rs` | exceptions as bytes, and back |
//! | `classes.rs` | which classes of objects cross, and which of their attributes |
//! | `numpy.rs` | arrays of numpy's as f32, in both directions |
//! | `peek.rs` | what of a call can be told without Python |
//! | `limits.rs` | how deep and how long what is converted may be |

mod classes;
mod decode;
mod encode;
mod exceptions;
mod foreign;
mod limits;
mod numpy;
mod peek;
mod stand_ins;

pub use decode::{Decoder, Matrices};
pub use encode::Encoder;
pub use exceptions::{decode_exception, encode_exception};
pub use peek::{items_at, name_of};
