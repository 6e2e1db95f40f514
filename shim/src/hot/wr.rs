//! `ibv_wr_*` on a recorded queue pair: from `wr_start` on requests are collected, and `wr_complete` hands all of them to the one way of posting.
//!
//! Owns: what was collected, and the provider's functions that ours stand in for. Collecting touches neither the ring nor the provider's queue, so an
//! open `wr_start` keeps nobody out but other callers of `wr_start` on this queue pair: those wait for one another, spinning, as they do for the lock
//! that a provider holds from start to complete. The agent's exclusion needs the poster's cell only, which is taken inside of `wr_complete`.
//!
//! What must hold: all of a chain is posted or nothing. A request that `ibv_send_wr` has no form for, or that a provider's `post_send` may refuse,
//! takes its whole chain to the provider's own functions.

use super::post;
use super::whole::{self, fate_of, Fate};
use crate::cold::device::as_agent;
use crate::cold::qp::QPS;
use crate::cold::{replay, tell};
use crate::shadow::{PostMode, Poster, QpShadow, Raw};
use crate::spin::{HeldCell, SpinCell};
use core::ffi::{c_int, c_void};
use shift_abi::*;

/// Requests that the room for a chain is made for at first; a longer chain makes it grow, up to the queue's depth. NCCL, UCX and perftest chain up to 16.
const CHAIN: usize = 16;
/// The flags that a program may set itself; inline is what `wr_set_inline_data` makes of a request.
const FLAGS: u32 = IBV_SEND_FENCE | IBV_SEND_SIGNALED | IBV_SEND_SOLICITED | IBV_SEND_IP_CSUM;

macro_rules! wr_ops {
    ($($op:ident : fn($($arg:ty),*) $(-> $ret:ty)?;)*) => {
        /// The provider's own functions of one queue pair.
        #[derive(Clone, Copy, Default)]
        struct WrOps {
            $($op: Option<unsafe extern "C" fn($($arg),*) $(-> $ret)?>,)*
            wr_flush: Option<wr_flush_fn>,
        }

        impl WrOps {
            /// Puts our functions in the place of the provider's, where it has one and it is not ours already. Each is one aligned word, so
            /// that another thread may be about to call one of them.
            ///
            /// # Safety
            /// The queue pair is live.
            unsafe fn hook(&mut self, pair: *mut ibv_qp_ex, has_flush: bool) {
                $({
                    let ours: unsafe extern "C" fn($($arg),*) $(-> $ret)? = $op;
                    // SAFETY: the caller vouches for the queue pair.
                    let place = unsafe { &raw mut (*pair).$op };
                    // SAFETY: as above.
                    let found = unsafe { place.read() };
                    if found.is_some_and(|found| found as usize != ours as usize) {
                        self.$op = found;
                        // SAFETY: as above.
                        unsafe { place.write(Some(ours)) };
                    }
                })*
                if has_flush {
                    let (ours, place): (wr_flush_fn, _) = (wr_flush, wr_flush_slot(pair));
                    // SAFETY: a queue pair that was granted flush has this member.
                    let found = unsafe { place.read() };
                    if found.is_some_and(|found| found as usize != ours as usize) {
                        self.wr_flush = found;
                        // SAFETY: as above.
                        unsafe { place.write(Some(ours)) };
                    }
                }
            }

            /// Puts the provider's functions back.
            ///
            /// # Safety
            /// As for `hook`, and nobody is between `wr_start` and `wr_complete`.
            unsafe fn unhook(&self, pair: *mut ibv_qp_ex, has_flush: bool) {
                $(
                    // SAFETY: the caller vouches for the queue pair.
                    unsafe { (*pair).$op = self.$op };
                )*
                if has_flush {
                    // SAFETY: as in `hook`.
                    unsafe { wr_flush_slot(pair).write(self.wr_flush) };
                }
            }
        }
    };
}

wr_ops! {
    wr_atomic_cmp_swp: fn(*mut ibv_qp_ex, u32, u64, u64, u64);
    wr_atomic_fetch_add: fn(*mut ibv_qp_ex, u32, u64, u64);
    wr_bind_mw: fn(*mut ibv_qp_ex, *mut ibv_mw, u32, *const ibv_mw_bind_info);
    wr_local_inv: fn(*mut ibv_qp_ex, u32);
    wr_rdma_read: fn(*mut ibv_qp_ex, u32, u64);
    wr_rdma_write: fn(*mut ibv_qp_ex, u32, u64);
    wr_rdma_write_imm: fn(*mut ibv_qp_ex, u32, u64, u32);
    wr_send: fn(*mut ibv_qp_ex);
    wr_send_imm: fn(*mut ibv_qp_ex, u32);
    wr_send_inv: fn(*mut ibv_qp_ex, u32);
    wr_send_tso: fn(*mut ibv_qp_ex, *mut c_void, u16, u16);
    wr_set_ud_addr: fn(*mut ibv_qp_ex, *mut ibv_ah, u32, u32);
    wr_set_xrc_srqn: fn(*mut ibv_qp_ex, u32);
    wr_set_inline_data: fn(*mut ibv_qp_ex, *mut c_void, usize);
    wr_set_inline_data_list: fn(*mut ibv_qp_ex, usize, *const ibv_data_buf);
    wr_set_sge: fn(*mut ibv_qp_ex, u32, u64, u32);
    wr_set_sge_list: fn(*mut ibv_qp_ex, usize, *const ibv_sge);
    wr_start: fn(*mut ibv_qp_ex);
    wr_complete: fn(*mut ibv_qp_ex) -> c_int;
    wr_abort: fn(*mut ibv_qp_ex);
    wr_atomic_write: fn(*mut ibv_qp_ex, u32, u64, *const c_void);
}

/// The extended side of a recorded queue pair. It outlives a RESET, which gives the queue pair another shadow.
pub struct QpEx {
    pair: Raw<ibv_qp_ex>,
    has_flush: bool,
    /// Beside `open`, and never held across a call: what the provider puts into the queue pair is noticed whoever is between start and complete.
    provider: SpinCell<WrOps>,
    open: HeldCell<Collected>,
}

/// What was collected since `wr_start`. The one who is between start and complete holds it.
struct Collected {
    /// Why nothing of this chain is posted, or 0.
    error: c_int,
    /// `sg_list` is set when the chain is complete.
    wrs: Vec<ibv_send_wr>,
    /// Of each request, where its elements begin.
    begins: Vec<usize>,
    /// The address of inline data is an offset into `inline` until the chain is complete.
    sges: Vec<ibv_sge>,
    inline: Vec<u8>,
    cap: ibv_qp_cap,
}

// SAFETY: the raw pointers inside are used only by who holds the cell, while the application's call that made them runs.
unsafe impl Send for Collected {}

impl QpEx {
    /// Hooks the functions of a queue pair that was just made.
    ///
    /// # Safety
    /// `pair` is live, extended, and nobody uses it yet.
    pub unsafe fn hook(pair: *mut ibv_qp_ex, cap: ibv_qp_cap, has_flush: bool) -> Self {
        let sges = CHAIN * cap.max_send_sge.clamp(1, 4) as usize;
        let collected = Collected {
            error: 0,
            wrs: Vec::with_capacity(CHAIN),
            begins: Vec::with_capacity(CHAIN),
            sges: Vec::with_capacity(sges),
            inline: Vec::with_capacity(cap.max_inline_data as usize),
            cap,
        };
        let provider = SpinCell::new(WrOps::default());
        let ex = Self { pair: Raw(pair), has_flush, provider, open: HeldCell::new(collected) };
        ex.hook_again();
        ex
    }

    /// Runs `change`, which may make the provider put functions of its own into the queue pair (mlx5 does so with `wr_complete` at RESET and RTS), and
    /// hooks again at once. Nobody is kept out meanwhile: `change` is a command of the NIC's, which may take as long as a dying NIC does.
    pub fn across<R>(&self, change: impl FnOnce() -> R) -> R {
        let result = change();
        self.hook_again();
        result
    }

    fn hook_again(&self) {
        // SAFETY: the queue pair is live in a call that makes, uses or changes it.
        unsafe { self.provider.lock().hook(self.pair.0, self.has_flush) };
    }

    /// Gives the queue pair its provider's functions back: it is not recorded any more. A thread that is between start and complete is waited for.
    pub fn unhook(&self) {
        // A chain that this thread itself left open ends here.
        drop(self.open.resume());
        let _alone = self.open.lock();
        // SAFETY: the caller is inside of a call that changes the queue pair.
        unsafe { self.provider.lock().unhook(self.pair.0, self.has_flush) };
    }
}

impl Collected {
    fn clear(&mut self) {
        self.error = 0;
        self.wrs.clear();
        self.begins.clear();
        self.sges.clear();
        self.inline.clear();
    }

    /// One more request, with what the application set beside the functions.
    fn add(&mut self, (wr_id, flags): (u64, u32), opcode: ibv_wr_opcode) -> Option<&mut ibv_send_wr> {
        if self.error == 0 && self.wrs.len() >= self.cap.max_send_wr as usize {
            self.error = libc::ENOMEM;
        }
        if self.error != 0 {
            return None;
        }
        self.begins.push(self.sges.len());
        let send_flags = flags & FLAGS;
        self.wrs.push(ibv_send_wr { wr_id, opcode, send_flags, ..ibv_send_wr::zeroed() });
        self.wrs.last_mut()
    }

    /// Takes back what a setter gave the last request: of several setters the last one counts.
    fn unset(&mut self) -> bool {
        let Some(begin) = self.begins.last().copied().filter(|_| self.error == 0) else { return false };
        self.sges.truncate(begin);
        if let Some(wr) = self.wrs.last_mut() {
            wr.send_flags &= !IBV_SEND_INLINE;
            wr.num_sge = 0;
        }
        true
    }

    fn set_elements(&mut self, elements: &mut dyn Iterator<Item = ibv_sge>) {
        if !self.unset() {
            return;
        }
        let begin = self.sges.len();
        self.sges.extend(elements.filter(|element| element.length != 0).take(shift_abi::chain::MAX_SGE));
        let count = self.sges.len() - begin;
        if count > self.cap.max_send_sge as usize {
            self.error = libc::ENOMEM;
        }
        if let Some(wr) = self.wrs.last_mut() {
            wr.num_sge = count as c_int;
        }
    }

    /// # Safety
    /// The buffers are readable.
    unsafe fn set_inline(&mut self, buffers: &mut dyn Iterator<Item = ibv_data_buf>) {
        if !self.unset() {
            return;
        }
        let begin = self.inline.len();
        for buffer in buffers.filter(|buffer| buffer.length != 0) {
            if self.inline.len() - begin + buffer.length > self.cap.max_inline_data as usize {
                self.error = libc::ENOMEM;
                return;
            }
            // SAFETY: the caller vouches for the buffer.
            self.inline.extend_from_slice(unsafe { core::slice::from_raw_parts(buffer.addr.cast(), buffer.length) });
        }
        let length = (self.inline.len() - begin) as u32;
        if let Some(wr) = self.wrs.last_mut() {
            wr.send_flags |= IBV_SEND_INLINE;
            wr.num_sge = c_int::from(length != 0);
        }
        if length != 0 {
            self.sges.push(ibv_sge { addr: begin as u64, length, lkey: 0 });
        }
    }

    /// The requests as a list; their memory stays where it is until the next `wr_start`.
    fn link(&mut self) -> *mut ibv_send_wr {
        let (first, sges, inline) = (self.wrs.as_mut_ptr(), self.sges.as_mut_ptr(), self.inline.as_ptr() as u64);
        let last = self.wrs.len().saturating_sub(1);
        for (at, (wr, begin)) in self.wrs.iter_mut().zip(&self.begins).enumerate() {
            wr.next = if at == last { core::ptr::null_mut() } else { first.wrapping_add(at + 1) };
            wr.sg_list = sges.wrapping_add(*begin);
            let is_inline = wr.send_flags & IBV_SEND_INLINE != 0 && wr.num_sge != 0;
            if let Some(element) = self.sges.get_mut(*begin).filter(|_| is_inline) {
                element.addr += inline;
            }
        }
        if self.wrs.is_empty() {
            core::ptr::null_mut()
        } else {
            first
        }
    }
}

fn shadow_of<'a>(pair: *mut ibv_qp_ex) -> Option<(&'a QpShadow, &'a QpEx)> {
    let shadow: &QpShadow = QPS.get(pair)?;
    Some((shadow, shadow.ex.as_deref()?))
}

/// What a queue pair of one element a request and no inline room costs beside its shadow.
#[cfg(test)]
pub const fn bytes_at_first() -> usize {
    size_of::<QpEx>() + CHAIN * (size_of::<ibv_send_wr>() + size_of::<usize>() + size_of::<ibv_sge>())
}

/// Runs `add` on what this thread collects.
#[inline]
fn collecting(pair: *mut ibv_qp_ex, add: impl FnOnce(&mut Collected)) {
    let Some((_, ex)) = shadow_of(pair) else { return };
    // Without a wr_start of this thread there is nothing to add to.
    let Some(mut inside) = ex.open.resume() else { return };
    add(&mut inside);
    inside.stay();
}

/// Name and flags of the next request, as the application set them.
#[inline]
fn set_of(pair: *mut ibv_qp_ex) -> (u64, u32) {
    // SAFETY: the queue pair is live; the application wrote the field before the call that brought this thread here.
    let wr_id = unsafe { (*pair).wr_id };
    // SAFETY: as above.
    (wr_id, unsafe { (*pair).wr_flags })
}

/// Sets them, for the provider's functions.
fn set(pair: *mut ibv_qp_ex, (wr_id, flags): (u64, u32)) {
    // SAFETY: the queue pair is live, and the cell of its collection is held: only this thread uses these fields.
    unsafe { (*pair).wr_id = wr_id };
    // SAFETY: as above.
    unsafe { (*pair).wr_flags = flags };
}

/// One more request of this opcode; `fill` writes what is particular to it.
#[inline]
fn build(pair: *mut ibv_qp_ex, opcode: ibv_wr_opcode, fill: impl FnOnce(&mut ibv_send_wr)) {
    let set = set_of(pair);
    collecting(pair, |collected| {
        if let Some(wr) = collected.add(set, opcode) {
            fill(wr);
        }
    });
}

fn rdma(remote_addr: u64, rkey: u32) -> ibv_wr_remote {
    ibv_wr_remote { rdma: ibv_wr_rdma { remote_addr, rkey } }
}

fn operands(remote_addr: u64, rkey: u32, compare_add: u64, swap: u64) -> ibv_wr_remote {
    ibv_wr_remote { atomic: ibv_wr_atomic { remote_addr, compare_add, swap, rkey } }
}

unsafe extern "C" fn wr_start(pair: *mut ibv_qp_ex) {
    let Some((_, ex)) = shadow_of(pair) else { return };
    let mut inside = ex.open.lock();
    inside.clear();
    // One load and compare; the provider may have put its own function there since the last time.
    // SAFETY: the application posts on a live queue pair.
    if unsafe { (*pair).wr_complete }.is_none_or(|found| found as usize != wr_complete as *const () as usize) {
        ex.hook_again();
    }
    inside.stay();
}

unsafe extern "C" fn wr_abort(pair: *mut ibv_qp_ex) {
    let Some((_, ex)) = shadow_of(pair) else { return };
    drop(ex.open.resume());
}

unsafe extern "C" fn wr_complete(pair: *mut ibv_qp_ex) -> c_int {
    let Some((qp, ex)) = shadow_of(pair) else { return libc::EINVAL };
    // The guard leaves at the end of this function.
    let Some(mut inside) = ex.open.resume() else { return libc::EINVAL };
    if inside.error != 0 {
        return inside.error;
    }
    let first = inside.link();
    if first.is_null() {
        return 0;
    }
    let (errno, is_halved) = post_whole(qp, ex, first, inside.wrs.len());
    drop(inside);
    if is_halved {
        surface_rest(qp);
    }
    errno
}

/// All of the chain or nothing. `true`: a part is out and the rest is recorded, to be surfaced.
fn post_whole(qp: &QpShadow, ex: &QpEx, first: *mut ibv_send_wr, count: usize) -> (c_int, bool) {
    let mut poster = qp.sq.poster.lock();
    // SAFETY: the chain was just linked, and lives as long as the cell of the collection is held.
    let chain = unsafe { SendChain::new(first, count) };
    let fate = match poster.mode {
        PostMode::Direct | PostMode::Held => fate_of(qp, &poster, chain, count as u64),
        PostMode::Flushing | PostMode::Gone => Fate::Posted,
    };
    match fate {
        Fate::Refused(errno) => (errno, false),
        Fate::Posted => whole::post(qp, &mut poster, first, count),
        Fate::ByProvider => (post_by_provider(qp, &mut poster, ex, chain), false),
    }
}

/// The provider took a part of a chain and refuses the rest: an error tells the program, as a completion.
#[cold]
fn surface_rest(qp: &QpShadow) {
    log::warn!("QP 0x{:06x}: its provider refused a part of a chain, which ends in an error", qp.qpn);
    as_agent(|| replay::surface(qp, Some(IBV_WC_LOC_QP_OP_ERR.0)));
    tell::application_error(qp);
}

/// For chains with a request that `post_send` has no form for, or refuses: recorded, and built again by the provider's own functions.
#[cold]
fn post_by_provider(qp: &QpShadow, poster: &mut Poster, ex: &QpEx, chain: SendChain<'_>) -> c_int {
    let (pair, ops) = (ex.pair.0, *ex.provider.lock());
    let (Some(start), Some(complete)) = (ops.wr_start, ops.wr_complete) else { return libc::EOPNOTSUPP };
    poster.keys.refresh();
    let begin = qp.sq.ring.tail();
    // A program may set its flags once for several chains.
    let before = set_of(pair);
    // SAFETY: the provider's own function, in the order that verbs asks for.
    unsafe { start(pair) };
    let mut next = begin;
    for wr in chain {
        // Keys are the application's own here, so none is unknown.
        let Some(copy) = post::prepare(qp, poster, wr.raw(), next) else { break };
        build_by_provider(pair, &ops, &copy);
        next += 1;
    }
    qp.sq.ring.set_tail(next);
    // SAFETY: as above.
    let errno = unsafe { complete(pair) };
    set(pair, before);
    if errno != 0 {
        post::take_back(qp, poster, begin, next);
    }
    errno
}

/// One request by the provider's functions. Where it has none for the opcode, the application had none either.
fn build_by_provider(pair: *mut ibv_qp_ex, ops: &WrOps, wr: &ibv_send_wr) {
    set(pair, (wr.wr_id, wr.send_flags));
    let (imm, remote) = (wr.imm.raw(), wr.wr);
    // SAFETY: the atomic form covers every form that was collected, and all are plain integers; what the opcode does not use is not read.
    let ibv_wr_atomic { remote_addr, compare_add, swap, rkey } = unsafe { remote.atomic };
    // SAFETY: the rdma form is a structure of plain integers.
    let rdma_rkey = unsafe { remote.rdma.rkey };
    macro_rules! call {
        ($op:ident($($arg:expr),*)) => {
            if let Some(function) = ops.$op {
                // SAFETY: the provider's own function, between its start and its complete, with what the application gave.
                unsafe { function(pair, $($arg),*) }
            }
        };
    }
    match wr.opcode {
        IBV_WR_SEND => call!(wr_send()),
        IBV_WR_SEND_WITH_IMM => call!(wr_send_imm(imm)),
        IBV_WR_SEND_WITH_INV => call!(wr_send_inv(imm)),
        IBV_WR_RDMA_WRITE => call!(wr_rdma_write(rdma_rkey, remote_addr)),
        IBV_WR_RDMA_WRITE_WITH_IMM => call!(wr_rdma_write_imm(rdma_rkey, remote_addr, imm)),
        IBV_WR_RDMA_READ => call!(wr_rdma_read(rdma_rkey, remote_addr)),
        IBV_WR_ATOMIC_CMP_AND_SWP => call!(wr_atomic_cmp_swp(rkey, remote_addr, compare_add, swap)),
        IBV_WR_ATOMIC_FETCH_AND_ADD => call!(wr_atomic_fetch_add(rkey, remote_addr, compare_add)),
        IBV_WR_LOCAL_INV => call!(wr_local_inv(imm)),
        IBV_WR_ATOMIC_WRITE => call!(wr_atomic_write(rkey, remote_addr, (&raw const compare_add).cast())),
        IBV_WR_FLUSH => call!(wr_flush(rkey, remote_addr, compare_add as usize, swap as u8, (swap >> 8) as u8)),
        IBV_WR_BIND_MW => {
            // SAFETY: the opcode uses this form.
            let bind = unsafe { wr.extra.bind_mw };
            call!(wr_bind_mw(bind.mw, bind.rkey, &bind.bind_info));
        }
        IBV_WR_TSO => {
            // SAFETY: as above.
            let ibv_wr_tso { hdr, hdr_sz, mss } = unsafe { wr.extra.tso };
            call!(wr_send_tso(hdr, hdr_sz, mss));
        }
        _ => {}
    }
    if wr.num_sge == 0 {
        return;
    }
    // SAFETY: the elements are of the collection, which is held.
    let element = unsafe { wr.sg_list.read() };
    if wr.send_flags & IBV_SEND_INLINE != 0 {
        call!(wr_set_inline_data(element.addr as *mut c_void, element.length as usize));
    } else if wr.num_sge == 1 {
        call!(wr_set_sge(element.lkey, element.addr, element.length));
    } else {
        call!(wr_set_sge_list(wr.num_sge as usize, wr.sg_list));
    }
}

unsafe extern "C" fn wr_atomic_cmp_swp(pair: *mut ibv_qp_ex, rkey: u32, remote_addr: u64, compare: u64, swap: u64) {
    build(pair, IBV_WR_ATOMIC_CMP_AND_SWP, |wr| wr.wr = operands(remote_addr, rkey, compare, swap));
}

unsafe extern "C" fn wr_atomic_fetch_add(pair: *mut ibv_qp_ex, rkey: u32, remote_addr: u64, add: u64) {
    build(pair, IBV_WR_ATOMIC_FETCH_AND_ADD, |wr| wr.wr = operands(remote_addr, rkey, add, 0));
}

unsafe extern "C" fn wr_atomic_write(pair: *mut ibv_qp_ex, rkey: u32, remote_addr: u64, value: *const c_void) {
    // SAFETY: the application gives eight readable bytes.
    let value = unsafe { value.cast::<u64>().read_unaligned() };
    build(pair, IBV_WR_ATOMIC_WRITE, |wr| wr.wr = operands(remote_addr, rkey, value, 0));
}

unsafe extern "C" fn wr_flush(pair: *mut ibv_qp_ex, rkey: u32, remote_addr: u64, len: usize, kind: u8, level: u8) {
    let kind_and_level = u64::from(kind) | u64::from(level) << 8;
    build(pair, IBV_WR_FLUSH, |wr| wr.wr = operands(remote_addr, rkey, len as u64, kind_and_level));
}

unsafe extern "C" fn wr_bind_mw(pair: *mut ibv_qp_ex, mw: *mut ibv_mw, rkey: u32, info: *const ibv_mw_bind_info) {
    // SAFETY: the application gives a readable structure.
    let bind_info = unsafe { info.read() };
    build(pair, IBV_WR_BIND_MW, |wr| wr.extra = ibv_wr_extra { bind_mw: ibv_wr_bind_mw { mw, rkey, bind_info } });
}

unsafe extern "C" fn wr_local_inv(pair: *mut ibv_qp_ex, rkey: u32) {
    build(pair, IBV_WR_LOCAL_INV, |wr| wr.imm = ibv_wr_imm { invalidate_rkey: rkey });
}

unsafe extern "C" fn wr_rdma_read(pair: *mut ibv_qp_ex, rkey: u32, remote_addr: u64) {
    build(pair, IBV_WR_RDMA_READ, |wr| wr.wr = rdma(remote_addr, rkey));
}

unsafe extern "C" fn wr_rdma_write(pair: *mut ibv_qp_ex, rkey: u32, remote_addr: u64) {
    build(pair, IBV_WR_RDMA_WRITE, |wr| wr.wr = rdma(remote_addr, rkey));
}

unsafe extern "C" fn wr_rdma_write_imm(pair: *mut ibv_qp_ex, rkey: u32, remote_addr: u64, imm_data: u32) {
    build(pair, IBV_WR_RDMA_WRITE_WITH_IMM, |wr| {
        (wr.wr, wr.imm) = (rdma(remote_addr, rkey), ibv_wr_imm { imm_data });
    });
}

unsafe extern "C" fn wr_send(pair: *mut ibv_qp_ex) {
    build(pair, IBV_WR_SEND, |_| {});
}

unsafe extern "C" fn wr_send_imm(pair: *mut ibv_qp_ex, imm_data: u32) {
    build(pair, IBV_WR_SEND_WITH_IMM, |wr| wr.imm = ibv_wr_imm { imm_data });
}

unsafe extern "C" fn wr_send_inv(pair: *mut ibv_qp_ex, rkey: u32) {
    build(pair, IBV_WR_SEND_WITH_INV, |wr| wr.imm = ibv_wr_imm { invalidate_rkey: rkey });
}

unsafe extern "C" fn wr_send_tso(pair: *mut ibv_qp_ex, hdr: *mut c_void, hdr_sz: u16, mss: u16) {
    build(pair, IBV_WR_TSO, |wr| wr.extra = ibv_wr_extra { tso: ibv_wr_tso { hdr, hdr_sz, mss } });
}

/// Of a reliable connection nothing is addressed so; providers have the function for all types alike.
unsafe extern "C" fn wr_set_ud_addr(_pair: *mut ibv_qp_ex, _ah: *mut ibv_ah, _remote_qpn: u32, _remote_qkey: u32) {}

/// As above.
unsafe extern "C" fn wr_set_xrc_srqn(_pair: *mut ibv_qp_ex, _remote_srqn: u32) {}

unsafe extern "C" fn wr_set_inline_data(pair: *mut ibv_qp_ex, addr: *mut c_void, length: usize) {
    // SAFETY: the application gives a readable buffer.
    collecting(pair, |collected| unsafe {
        collected.set_inline(&mut core::iter::once(ibv_data_buf { addr, length }));
    });
}

unsafe extern "C" fn wr_set_inline_data_list(pair: *mut ibv_qp_ex, count: usize, list: *const ibv_data_buf) {
    // SAFETY: the application gives so many readable elements.
    let mut buffers = (0..count).map(|at| unsafe { list.wrapping_add(at).read() });
    // SAFETY: and they name readable buffers.
    collecting(pair, |collected| unsafe { collected.set_inline(&mut buffers) });
}

unsafe extern "C" fn wr_set_sge(pair: *mut ibv_qp_ex, lkey: u32, addr: u64, length: u32) {
    collecting(pair, |collected| collected.set_elements(&mut core::iter::once(ibv_sge { addr, length, lkey })));
}

unsafe extern "C" fn wr_set_sge_list(pair: *mut ibv_qp_ex, count: usize, list: *const ibv_sge) {
    // SAFETY: the application gives so many readable elements.
    let mut elements = (0..count).map(|at| unsafe { list.wrapping_add(at).read() });
    collecting(pair, |collected| collected.set_elements(&mut elements));
}
