//! The two macros by which this crate states a C structure or a C enumeration exactly once.

/// Defines `repr(C)` structures, each field with its C offset, and asserts size and offsets at compile time.
///
/// `Type as "C type" [size] { field: Type = offset, field: Type = offset => "c.path", }`. Each type gets `zeroed()`;
/// the module gets `LAYOUT`, which the test compares with the installed header.
macro_rules! c_structs {
    ($(
        $(#[$meta:meta])*
        $name:ident as $c_name:literal [$size:expr] {
            $( $(#[$field_meta:meta])* $field:ident : $ty:ty = $offset:expr $(=> $c_field:literal)? ),* $(,)?
        }
    )*) => {
        $(
            $(#[$meta])*
            #[repr(C)]
            #[allow(missing_docs, reason = "a field means what verbs.h and the rdma-core manual pages say")]
            pub struct $name {
                $( $(#[$field_meta])* pub $field: $ty, )*
            }

            const _: () = {
                assert!(core::mem::size_of::<$name>() == $size);
                $( assert!(core::mem::offset_of!($name, $field) == $offset); )*
            };

            impl $name {
                /// The value whose bytes are all zero: what C gets from `memset` or `= {}`.
                #[must_use]
                pub const fn zeroed() -> Self {
                    // SAFETY: every field of every structure of this macro is an integer, an array of integers, a raw
                    // pointer, an `Option` of a function pointer, a libc pthread object, or a structure or union of
                    // those; the all-zero pattern is a valid value of each.
                    unsafe { core::mem::zeroed() }
                }
            }
        )*

        /// (C type, its size, [(C field, offset)]) of every structure of this module.
        #[cfg(test)]
        pub(crate) const LAYOUT: &[crate::header_test::StructLayout] = &[ $(
            ($c_name, core::mem::size_of::<$name>(), &[
                $( (c_structs!(@path $field $($c_field)?), core::mem::offset_of!($name, $field)) ),*
            ]),
        )* ];
    };
    (@path $field:ident) => { stringify!($field) };
    (@path $field:ident $c_field:literal) => { $c_field };
}

/// Defines a C enumeration as a transparent newtype with its named values, any other value being representable.
macro_rules! c_enum {
    (
        $(#[$meta:meta])*
        $name:ident($repr:ty), $names:ident { $( $konst:ident = $value:expr ),* $(,)? }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(pub $repr);

        $(
            #[doc = concat!("`", stringify!($konst), "` of verbs.h.")]
            pub const $konst: $name = $name($value);
        )*

        impl $name {
            /// C's name of this value, where it has one.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $( $konst => Some(stringify!($konst)), )*
                    _ => None,
                }
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, "{}({})", stringify!($name), self.0),
                }
            }
        }

        #[cfg(test)]
        pub(crate) const $names: &[(&str, i64)] = &[ $( (stringify!($konst), $konst.0 as i64) ),* ];
    };
}

/// Defines the bits of a C flag word as plain integers of the word's own type.
macro_rules! c_flags {
    ($ty:ty, $names:ident { $( $konst:ident = $value:expr ),* $(,)? }) => {
        $(
            #[doc = concat!("`", stringify!($konst), "` of verbs.h.")]
            pub const $konst: $ty = $value;
        )*

        #[cfg(test)]
        pub(crate) const $names: &[(&str, i64)] = &[ $( (stringify!($konst), $konst as i64) ),* ];
    };
}
