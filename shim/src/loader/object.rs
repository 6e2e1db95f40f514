//! A loaded object as its dynamic section describes it.
//!
//! Owns: the reading of symbol tables, names and version definitions in memory. Refuses to own: which object is wanted. Works where
//! nothing may be called that might look a symbol up: no allocation, no lock, no libc function.

use core::ffi::{c_char, c_void, CStr};
use libc::Elf64_Sym;

/// `struct link_map` of <link.h>: the part that glibc promises. A handle of dlopen points to one.
#[repr(C)]
pub struct LinkMap {
    base: usize,
    name: *const c_char,
    dynamic: *const Dyn,
    next: *mut LinkMap,
    previous: *mut LinkMap,
}

/// `Elf64_Dyn`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Dyn {
    tag: i64,
    value: usize,
}

/// `Elf64_Verdef`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Verdef {
    revision: u16,
    flags: u16,
    index: u16,
    names: u16,
    hash: u32,
    first_name: u32,
    next: u32,
}

const DT_NULL: i64 = 0;
const DT_STRTAB: i64 = 5;
const DT_SYMTAB: i64 = 6;
const DT_SONAME: i64 = 14;
const DT_GNU_HASH: i64 = 0x6fff_fef5;
const DT_VERSYM: i64 = 0x6fff_fff0;
const DT_VERDEF: i64 = 0x6fff_fffc;

/// In a version index: not the default version of this name.
const HIDDEN: u16 = 0x8000;
const STT_FUNC: u8 = 2;
/// Version definitions of one object that are looked at: libibverbs has some twenty.
const MOST_VERSIONS: usize = 256;

/// Where the parts of one object are. Valid as long as the object stays loaded.
#[derive(Clone, Copy)]
pub struct Object {
    base: usize,
    symbols: usize,
    strings: usize,
    hash: usize,
    versions: usize,
    definitions: usize,
    soname: usize,
}

impl LinkMap {
    /// The object of a map, and the path by which it was loaded.
    ///
    /// # Safety
    /// `map` is a live handle of the dynamic linker.
    pub unsafe fn object(map: *const Self) -> Object {
        // SAFETY: the caller vouches for the map.
        let base = unsafe { (*map).base };
        // SAFETY: as above.
        let dynamic = unsafe { (*map).dynamic };
        // SAFETY: the map of a loaded object points to its dynamic section.
        unsafe { Object::new(base, dynamic) }
    }

    /// The path by which it was loaded; empty for the program itself.
    ///
    /// # Safety
    /// `map` is a live handle of the dynamic linker, and the object stays loaded while the path is used.
    pub unsafe fn path<'a>(map: *const Self) -> &'a CStr {
        // SAFETY: the caller vouches for the map.
        let name = unsafe { (*map).name };
        if name.is_null() {
            return c"";
        }
        // SAFETY: the linker's name is NUL-terminated and lives as long as the object.
        unsafe { CStr::from_ptr(name) }
    }
}

impl Object {
    /// The object that is loaded at `base` and has this dynamic section.
    ///
    /// # Safety
    /// Such an object is loaded and stays so while the result is used.
    pub unsafe fn new(base: usize, dynamic: *const Dyn) -> Self {
        let mut object = Self { base, symbols: 0, strings: 0, hash: 0, versions: 0, definitions: 0, soname: 0 };
        let mut at = dynamic;
        while !at.is_null() {
            // SAFETY: the section ends with DT_NULL, at which the loop ends.
            let Dyn { tag, value } = unsafe { at.read() };
            match tag {
                DT_NULL => break,
                DT_STRTAB => object.strings = object.address(value),
                DT_SYMTAB => object.symbols = object.address(value),
                DT_GNU_HASH => object.hash = object.address(value),
                DT_VERSYM => object.versions = object.address(value),
                DT_VERDEF => object.definitions = object.address(value),
                DT_SONAME => object.soname = value,
                _ => {}
            }
            at = at.wrapping_add(1);
        }
        object
    }

    /// glibc adds the base to what the section holds, except in sections that it may not write (the kernel's vdso).
    const fn address(&self, value: usize) -> usize {
        if value < self.base {
            self.base.wrapping_add(value)
        } else {
            value
        }
    }

    fn string(&self, offset: usize) -> &[u8] {
        let at = self.strings.wrapping_add(offset) as *const c_char;
        // SAFETY: offsets come from the object's own tables, and its string table ends with a NUL.
        unsafe { CStr::from_ptr(at) }.to_bytes()
    }

    /// Its name by itself, empty if it has none.
    pub fn soname(&self) -> &[u8] {
        if self.soname == 0 || self.strings == 0 {
            return b"";
        }
        self.string(self.soname)
    }

    /// The function of this name, in its default version.
    pub fn function(&self, name: &[u8]) -> Option<*mut c_void> {
        if self.hash == 0 || self.symbols == 0 || self.strings == 0 {
            return None;
        }
        let hash = gnu_hash(name);
        let [buckets, first, bloom] = [0, 1, 2].map(|field| self.word(field) as usize);
        let chains = 4 + 2 * bloom + buckets;
        let mut index = self.word(4 + 2 * bloom + (hash as usize).checked_rem(buckets)?) as usize;
        while index >= first && index != 0 {
            let link = self.word(chains + index - first);
            if (link ^ hash) & !1 == 0 {
                if let Some(found) = self.defined_as(index, name) {
                    return Some(found);
                }
            }
            if link & 1 != 0 {
                break;
            }
            index += 1;
        }
        None
    }

    /// A word of the hash table: four of header, the Bloom filter of 64-bit words, buckets, chains.
    fn word(&self, index: usize) -> u32 {
        let at = (self.hash as *const u32).wrapping_add(index);
        // SAFETY: `function` stays within the table as its header describes it.
        unsafe { at.read() }
    }

    fn defined_as(&self, index: usize, name: &[u8]) -> Option<*mut c_void> {
        let at = (self.symbols as *const Elf64_Sym).wrapping_add(index);
        // SAFETY: the hash table names only symbols that there are.
        let symbol = unsafe { at.read() };
        let fits = symbol.st_shndx != 0 && symbol.st_info & 0xf == STT_FUNC && !self.is_hidden(index);
        (fits && self.string(symbol.st_name as usize) == name)
            .then(|| self.base.wrapping_add(symbol.st_value as usize) as *mut c_void)
    }

    fn is_hidden(&self, index: usize) -> bool {
        if self.versions == 0 {
            return false;
        }
        let at = (self.versions as *const u16).wrapping_add(index);
        // SAFETY: the version table has an entry for each symbol.
        let version = unsafe { at.read() };
        version & HIDDEN != 0
    }

    /// Does it define symbols of this version?
    pub fn defines(&self, version: &[u8]) -> bool {
        let mut at = self.definitions;
        for _ in 0..MOST_VERSIONS {
            if at == 0 || self.strings == 0 {
                return false;
            }
            // SAFETY: `at` is the first definition, or the one to which the one before it pointed.
            let definition = unsafe { (at as *const Verdef).read() };
            let name = at.wrapping_add(definition.first_name as usize) as *const u32;
            // SAFETY: the name of a definition begins with its offset in the string table.
            let offset = unsafe { name.read() };
            if self.string(offset as usize) == version {
                return true;
            }
            at = if definition.next == 0 { 0 } else { at.wrapping_add(definition.next as usize) };
        }
        false
    }
}

/// Hash of DT_GNU_HASH.
fn gnu_hash(name: &[u8]) -> u32 {
    name.iter().fold(5381, |hash: u32, byte| hash.wrapping_mul(33).wrapping_add(u32::from(*byte)))
}
