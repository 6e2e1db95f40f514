//! NCCL's network functions as safe calls: one device, senders and receivers, requests.
//!
//! Every pointer that NCCL is given lies in a [`Region`] that lives as long as the process, so that a request which is never finished writes
//! into nobody's memory. What NCCL returns is checked call by call; everything but success ends the run.

#![expect(unsafe_code, reason = "the border to NCCL, a C library")]

use std::ffi::{c_char, c_int, c_ulong, c_void, CStr};
use std::io;
use std::path::Path;
use std::ptr::null_mut;

use table::{CommConfig, Handle, Status};

mod library;
mod region;
mod table;

pub use library::Table;
pub use region::Region;

/// `NCCL_NET_HANDLE_MAXSIZE`.
pub const ADDRESS_BYTES: usize = 128;
/// `NCCL_NET_IB_MAX_RECVS`: parts of a grouped receive, at most.
pub const GROUP_MAX: usize = 8;
/// `NCCL_PTR_HOST`.
const HOST_MEMORY: c_int = 1;
/// Room for the properties of any version; the first field is the name.
const PROPERTIES_WORDS: usize = 64;

/// Why NCCL could not be driven.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The library's file.
    #[error("{0}")]
    File(#[from] io::Error),
    /// It is no ELF file that can be read.
    #[error("{0}")]
    Elf(#[from] object::Error),
    /// It has no such symbol.
    #[error("there is no ncclNetIb in .symtab")]
    NoTable,
    /// Nobody knows this version.
    #[error("ncclNetIb has {0} bytes, which is no known layout")]
    Layout(usize),
    /// The loader refused it.
    #[error("the library cannot be loaded: {0}")]
    Load(String),
    /// There is no such device.
    #[error("NCCL does not see the device {0}; it sees {1:?}")]
    NoDevice(String, Vec<String>),
    /// NCCL said no.
    #[error("{0}: ncclResult {1}")]
    Refused(&'static str, Status),
}

fn check(what: &'static str, status: Status) -> Result<(), NetError> {
    if status == 0 {
        Ok(())
    } else {
        Err(NetError::Refused(what, status))
    }
}

/// One device of NCCL's network.
#[derive(Debug)]
pub struct Net {
    table: Table,
    context: Handle,
    device: c_int,
}

/// A listening receiver.
#[derive(Debug)]
pub struct Listener(Handle);
/// The sending end of a connection.
#[derive(Debug)]
pub struct Sender(Handle);
/// The receiving end.
#[derive(Debug)]
pub struct Receiver(Handle);
/// Memory that one connection may use.
#[derive(Debug, Clone, Copy)]
pub struct Registration(Handle);
/// Something under way.
#[derive(Debug)]
pub struct Request(Handle);

/// An end of a connection, to register memory with.
#[derive(Debug, Clone, Copy)]
pub enum End<'a> {
    /// That sends.
    Sends(&'a Sender),
    /// That receives.
    Receives(&'a Receiver),
}

/// One part of a grouped receive.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// Where in the region.
    pub at: usize,
    /// Room there.
    pub room: usize,
    /// The sender's name for it.
    pub tag: i32,
}

impl Net {
    /// Opens the library and the device of that name.
    ///
    /// # Errors
    /// There is no library, no device, or NCCL refuses.
    pub fn open(library: &Path, device: &str) -> Result<Net, NetError> {
        let table = library::open(library)?;
        let mut context = null_mut();
        let config = CommConfig { traffic_class: -1 };
        let status = match table {
            // SAFETY: NCCL's own function with the arguments of its version
            Table::V8(table) => unsafe { (table.init)(log_line) },
            // SAFETY: as above; the configuration is copied
            Table::V12(table) => unsafe { (table.init)(&raw mut context, 1, &raw const config, log_line, null_mut()) },
        };
        check("init", status)?;
        let mut net = Net { table, context, device: 0 };
        let names = net.names()?;
        let index = names.iter().position(|name| name == device);
        net.device = index.ok_or_else(|| NetError::NoDevice(device.to_owned(), names))? as c_int;
        Ok(net)
    }

    fn names(&self) -> Result<Vec<String>, NetError> {
        let mut count = 0;
        let (devices, properties) = match self.table {
            Table::V8(table) => (table.devices, table.properties),
            Table::V12(table) => (table.devices, table.properties),
        };
        // SAFETY: room for a number
        check("devices", unsafe { devices(&raw mut count) })?;
        let name = |device| {
            let mut room = [0_usize; PROPERTIES_WORDS];
            // SAFETY: room for the properties of any version, aligned for them
            check("getProperties", unsafe { properties(device, room.as_mut_ptr().cast()) })?;
            let [name, ..] = room;
            // SAFETY: the first field is the device's name, which NCCL keeps
            Ok(unsafe { CStr::from_ptr(name as *const c_char) }.to_string_lossy().into_owned())
        };
        (0..count).map(name).collect()
    }

    /// Makes a receiver that can be connected to, and its address.
    ///
    /// # Errors
    /// NCCL refuses.
    pub fn listen(&self) -> Result<(Listener, [u8; ADDRESS_BYTES]), NetError> {
        let mut address = Box::new([0_u64; ADDRESS_BYTES / 8]);
        let mut listener = null_mut();
        let room = address.as_mut_ptr().cast();
        let status = match self.table {
            // SAFETY: room for an address and for a handle
            Table::V8(table) => unsafe { (table.listen)(self.device, room, &raw mut listener) },
            // SAFETY: as above
            Table::V12(table) => unsafe { (table.listen)(self.context, self.device, room, &raw mut listener) },
        };
        check("listen", status)?;
        let mut bytes = [0; ADDRESS_BYTES];
        for (to, word) in bytes.chunks_exact_mut(8).zip(address.iter()) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        Ok((Listener(listener), bytes))
    }

    /// One step of connecting; `address` keeps NCCL's state between two steps.
    ///
    /// # Errors
    /// NCCL refuses.
    pub fn connect(&self, address: &mut Address) -> Result<Option<Sender>, NetError> {
        let (mut sender, mut offload) = (null_mut(), null_mut());
        let room = address.0.as_mut_ptr().cast();
        let status = match self.table {
            // SAFETY: an address of NCCL's, in place since the first step, and room for two handles
            Table::V8(table) => unsafe { (table.connect)(self.device, room, &raw mut sender, &raw mut offload) },
            Table::V12(table) => {
                let connect = table.connect;
                // SAFETY: as above
                unsafe { connect(self.context, self.device, room, &raw mut sender, &raw mut offload) }
            }
        };
        check("connect", status)?;
        Ok((!sender.is_null()).then_some(Sender(sender)))
    }

    /// One step of accepting.
    ///
    /// # Errors
    /// NCCL refuses.
    pub fn accept(&self, listener: &Listener) -> Result<Option<Receiver>, NetError> {
        let (mut receiver, mut offload) = (null_mut(), null_mut());
        let accept = match self.table {
            Table::V8(table) => table.accept,
            Table::V12(table) => table.accept,
        };
        // SAFETY: a listener of NCCL's and room for two handles
        check("accept", unsafe { accept(listener.0, &raw mut receiver, &raw mut offload) })?;
        Ok((!receiver.is_null()).then_some(Receiver(receiver)))
    }

    /// Registers a whole region with a connection.
    ///
    /// # Errors
    /// NCCL refuses.
    pub fn register(&self, end: End<'_>, region: &Region) -> Result<Registration, NetError> {
        let mut registration = null_mut();
        let register = match self.table {
            Table::V8(table) => table.register,
            Table::V12(table) => table.register,
        };
        // SAFETY: a connection of NCCL's, memory that stays, and room for a handle
        let status = unsafe { register(comm(end), region.at(0), region.len(), HOST_MEMORY, &raw mut registration) };
        check("regMr", status)?;
        Ok(Registration(registration))
    }

    /// Forgets a registration.
    ///
    /// # Errors
    /// NCCL refuses.
    pub fn deregister(&self, end: End<'_>, registration: Registration) -> Result<(), NetError> {
        let deregister = match self.table {
            Table::V8(table) => table.deregister,
            Table::V12(table) => table.deregister,
        };
        // SAFETY: a connection and a registration of NCCL's, which nothing under way uses any more
        check("deregMr", unsafe { deregister(comm(end), registration.0) })
    }

    /// Sends `len` bytes from `at`; none if the receiver is not ready.
    ///
    /// # Errors
    /// NCCL refuses.
    pub fn send(
        &self,
        sender: &Sender,
        (region, registration): (&Region, Registration),
        (at, len): (usize, usize),
        tag: i32,
    ) -> Result<Option<Request>, NetError> {
        let mut request = null_mut();
        let data = region.at(at);
        let status = match self.table {
            Table::V8(table) => {
                // SAFETY: a sender of NCCL's and registered memory, which is not changed before the request is done
                unsafe { (table.send)(sender.0, data, len as c_int, tag, registration.0, &raw mut request) }
            }
            Table::V12(table) => {
                // SAFETY: as above; no profiler
                unsafe { (table.send)(sender.0, data, len, tag, registration.0, null_mut(), &raw mut request) }
            }
        };
        check("isend", status)?;
        Ok((!request.is_null()).then_some(Request(request)))
    }

    /// Receives a group of messages; none if there are too many under way.
    ///
    /// # Errors
    /// NCCL refuses.
    pub fn receive(
        &self,
        receiver: &Receiver,
        (region, registration): (&Region, Registration),
        parts: &[Part],
    ) -> Result<Option<Request>, NetError> {
        let mut request = null_mut();
        let mut data: Vec<*mut c_void> = parts.iter().map(|part| region.at(part.at)).collect();
        let mut tags: Vec<c_int> = parts.iter().map(|part| part.tag).collect();
        let mut registrations = vec![registration.0; parts.len()];
        let count = parts.len() as c_int;
        let status = match self.table {
            Table::V8(table) => {
                let mut rooms: Vec<c_int> = parts.iter().map(|part| part.room as c_int).collect();
                let (data, rooms, tags) = (data.as_mut_ptr(), rooms.as_mut_ptr(), tags.as_mut_ptr());
                let registrations = registrations.as_mut_ptr();
                // SAFETY: arrays of `count` that are copied, and registered memory that stays
                unsafe { (table.receive)(receiver.0, count, data, rooms, tags, registrations, &raw mut request) }
            }
            Table::V12(table) => {
                let mut rooms: Vec<usize> = parts.iter().map(|part| part.room).collect();
                let mut profiles: Vec<Handle> = vec![null_mut(); parts.len()];
                let (data, rooms, tags) = (data.as_mut_ptr(), rooms.as_mut_ptr(), tags.as_mut_ptr());
                let (registrations, profiles) = (registrations.as_mut_ptr(), profiles.as_mut_ptr());
                let receive = table.receive;
                // SAFETY: as above
                unsafe { receive(receiver.0, count, data, rooms, tags, registrations, profiles, &raw mut request) }
            }
        };
        check("irecv", status)?;
        Ok((!request.is_null()).then_some(Request(request)))
    }

    /// Makes received parts visible; none if NCCL finds it needless.
    ///
    /// # Errors
    /// NCCL refuses.
    pub fn flush(
        &self,
        receiver: &Receiver,
        (region, registration): (&Region, Registration),
        parts: &[Part],
        lengths: &[i32],
    ) -> Result<Option<Request>, NetError> {
        let mut request = null_mut();
        let mut data: Vec<*mut c_void> = parts.iter().map(|part| region.at(part.at)).collect();
        let mut lengths = lengths.to_vec();
        let mut registrations = vec![registration.0; parts.len()];
        let flush = match self.table {
            Table::V8(table) => table.flush,
            Table::V12(table) => table.flush,
        };
        let (data, lengths, registrations) = (data.as_mut_ptr(), lengths.as_mut_ptr(), registrations.as_mut_ptr());
        // SAFETY: arrays of as many elements as there are parts, which are copied, and registered memory that stays
        let status = unsafe { flush(receiver.0, parts.len() as c_int, data, lengths, registrations, &raw mut request) };
        check("iflush", status)?;
        Ok((!request.is_null()).then_some(Request(request)))
    }

    /// The lengths of all parts, if the request is done. It must not be asked again then.
    ///
    /// # Errors
    /// It ended with an error.
    pub fn test(&self, request: &Request) -> Result<Option<[i32; GROUP_MAX]>, NetError> {
        let (mut done, mut lengths) = (0, [0; GROUP_MAX]);
        let test = match self.table {
            Table::V8(table) => table.test,
            Table::V12(table) => table.test,
        };
        // SAFETY: a request that is under way, and room for the lengths of the largest group
        check("test", unsafe { test(request.0, &raw mut done, lengths.as_mut_ptr()) })?;
        Ok((done != 0).then_some(lengths))
    }

    /// Ends a sender.
    ///
    /// # Errors
    /// NCCL refuses.
    pub fn close_sender(&self, sender: Sender) -> Result<(), NetError> {
        let close = match self.table {
            Table::V8(table) => table.close_send,
            Table::V12(table) => table.close_send,
        };
        // SAFETY: a sender of NCCL's without requests, given away here
        check("closeSend", unsafe { close(sender.0) })
    }

    /// Ends a receiver.
    ///
    /// # Errors
    /// NCCL refuses.
    pub fn close_receiver(&self, receiver: Receiver) -> Result<(), NetError> {
        let close = match self.table {
            Table::V8(table) => table.close_receive,
            Table::V12(table) => table.close_receive,
        };
        // SAFETY: a receiver of NCCL's without requests, given away here
        check("closeRecv", unsafe { close(receiver.0) })
    }

    /// Ends a listener.
    ///
    /// # Errors
    /// NCCL refuses.
    pub fn close_listener(&self, listener: Listener) -> Result<(), NetError> {
        let close = match self.table {
            Table::V8(table) => table.close_listen,
            Table::V12(table) => table.close_listen,
        };
        // SAFETY: a listener of NCCL's, given away here
        check("closeListen", unsafe { close(listener.0) })
    }

    /// Ends the context, where there is one.
    ///
    /// # Errors
    /// NCCL refuses.
    pub fn close(self) -> Result<(), NetError> {
        match self.table {
            Table::V8(_) => Ok(()),
            // SAFETY: NCCL's own context, given away here
            Table::V12(table) => check("finalize", unsafe { (table.finalize)(self.context) }),
        }
    }
}

/// An address as the peer gave it. NCCL keeps the state of an unfinished connect in it, so it must not move.
#[derive(Debug)]
pub struct Address(Box<[u64; ADDRESS_BYTES / 8]>);

impl Address {
    /// From the peer's bytes.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Address {
        let mut words = Box::new([0; ADDRESS_BYTES / 8]);
        for (word, from) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_ne_bytes(from.try_into().unwrap_or_default());
        }
        Address(words)
    }
}

fn comm(end: End<'_>) -> Handle {
    match end {
        End::Sends(sender) => sender.0,
        End::Receives(receiver) => receiver.0,
    }
}

/// `NCCL_LOG_WARN`.
const WARNING: c_int = 2;

/// NCCL's warnings, with the arguments left out.
extern "C" fn log_line(level: c_int, _: c_ulong, file: *const c_char, line: c_int, format: *const c_char) {
    if level != WARNING || file.is_null() || format.is_null() {
        return;
    }
    // SAFETY: a literal of NCCL's
    let file = unsafe { CStr::from_ptr(file) };
    // SAFETY: as above
    let format = unsafe { CStr::from_ptr(format) };
    eprintln!("nccl: {}:{line}: {}", file.to_string_lossy(), format.to_string_lossy());
}
