(** Runs of requests over a path that may fail once, and what the sender sees of them.

    Owns the transition system of which every trace in these proofs is a run, the sender's view and the overlays.
    "A Formal Verification of Failover Impossibility", "Model and Definitions"; the paper has traces as any lists of
    events, here they are those that the system generates. A request is named by its place in the queue, so two requests
    for the same operation are two. *)

From Coq Require Import Arith Bool List Lia.
Import ListNotations.
From Shift Require Import Memory.

Inductive path := Primary | Standby.

Inductive event :=
| Send (i : nat) (o : op)
| PacketLost (i : nat)
| Receive (i : nat)
| Execute (i : nat) (r : result)
| AckLost (i : nat)
| Completion (i : nat) (r : result)
| Timeout (i : nat)
| Resend (i : nat)                      (* the overlay posts it again, on the standby *)
| Foreign (o : op) (r : result)         (* another requester's operation, executed and answered *)
| AppConsume (a : addr) (v : value)     (* the receiving application takes what was written *)
| AppReuse (a : addr) (v : value).      (* and uses the place for something of its own *)

(** Newest event first; [rev] where one is written out. *)
Definition trace := list event.

Inductive phase :=
| Unposted
| InFlight (p : path)
| Lost
| Received (p : path)
| Executed (p : path) (r : result)
| Unacknowledged
| TimedOut
| Completed.

Inductive room := Empty | Fresh | Consumed.

Record state := State { mem : memory; stage : nat -> phase; slot : addr -> room }.

Definition update {A} (f : nat -> A) (i : nat) (x : A) : nat -> A := fun j => if j =? i then x else f j.

Definition enter (s : state) (i : nat) (x : phase) : state := State (mem s) (update (stage s) i x) (slot s).

(** What the receiver's NIC does; a WRITE makes its place fit to be consumed, by an application that polls it. *)
Definition perform (s : state) (i : nat) (o : op) (p : path) (r : result) : state :=
  State (after (mem s) o) (update (stage s) i (Executed p r))
    (match o with Write a _ => update (slot s) a Fresh | _ => slot s end).

(** A NIC takes and executes in the order of the posts. *)
Definition arrived (x : phase) : bool :=
  match x with Received _ | Executed _ _ | Unacknowledged | Completed => true | _ => false end.
Definition performed (x : phase) : bool :=
  match x with Executed _ _ | Unacknowledged | Completed => true | _ => false end.

(** What a flush ends: everything that is out on the path that failed. *)
Definition outstanding (x : phase) : bool :=
  match x with InFlight Primary | Lost | Received Primary | Executed Primary _ | Unacknowledged => true | _ => false end.

Definition given_up (s : state) (i : nat) : Prop :=
  stage s i = Lost \/ stage s i = Unacknowledged \/
  (outstanding (stage s i) = true /\ exists j, j < i /\ stage s j = TimedOut).

(** [queue] is what the application posts, [again] what the overlay decides at this moment. *)
Inductive step (queue : list op) (again : nat -> bool) (s : state) : event -> state -> Prop :=
| step_send i o :
    stage s i = Unposted -> nth_error queue i = Some o -> (forall j, j < i -> stage s j <> Unposted) ->
    step queue again s (Send i o) (enter s i (InFlight Primary))
| step_packet_lost i :
    stage s i = InFlight Primary -> step queue again s (PacketLost i) (enter s i Lost)
| step_receive i p :
    stage s i = InFlight p -> (p = Primary -> forall j, j < i -> arrived (stage s j) = true) ->
    step queue again s (Receive i) (enter s i (Received p))
| step_execute i p o r :
    stage s i = Received p -> nth_error queue i = Some o ->
    (p = Primary -> forall j, j < i -> performed (stage s j) = true) -> answer (mem s) o = r ->
    step queue again s (Execute i r) (perform s i o p r)
| step_ack_lost i r :
    stage s i = Executed Primary r -> step queue again s (AckLost i) (enter s i Unacknowledged)
| step_completion i p r :
    stage s i = Executed p r -> (p = Primary -> forall j, j < i -> stage s j = Completed) ->
    step queue again s (Completion i r) (enter s i Completed)
| step_timeout i :
    given_up s i -> step queue again s (Timeout i) (enter s i TimedOut)
| step_resend i :
    stage s i = TimedOut -> again i = true -> step queue again s (Resend i) (enter s i (InFlight Standby))
| step_foreign o r :
    answer (mem s) o = r -> step queue again s (Foreign o r) (State (after (mem s) o) (stage s) (slot s))
| step_consume a v :
    slot s a = Fresh -> mem s a = v ->
    step queue again s (AppConsume a v) (State (mem s) (stage s) (update (slot s) a Consumed))
| step_reuse a v :
    slot s a = Consumed ->
    step queue again s (AppReuse a v) (State (set (mem s) a v) (stage s) (update (slot s) a Empty)).

(** True: post the request again. It may look at the whole run; a transparent one does not. *)
Definition overlay := trace -> nat -> bool.

Definition initial (m : memory) : state := State m (fun _ => Unposted) (fun _ => Empty).

Inductive generated (queue : list op) (m : memory) (D : overlay) : trace -> state -> Prop :=
| generated_nothing : generated queue m D [] (initial m)
| generated_step t s e s' :
    generated queue m D t s -> step queue (D t) s e s' -> generated queue m D (e :: t) s'.

(** * What the sender sees *)

Inductive observation :=
| SawSend (i : nat) (o : op)
| SawCompletion (i : nat) (r : result)
| SawTimeout (i : nat)
| SawResend (i : nat).

Fixpoint view (t : trace) : list observation :=
  match t with
  | [] => []
  | Send i o :: t => SawSend i o :: view t
  | Completion i r :: t => SawCompletion i r :: view t
  | Timeout i :: t => SawTimeout i :: view t
  | Resend i :: t => SawResend i :: view t
  | _ :: t => view t
  end.

Definition transparent (D : overlay) : Prop :=
  forall t1 t2 i, view t1 = view t2 -> D t1 i = D t2 i.

(** * What happened *)

Fixpoint executions (i : nat) (t : trace) : nat :=
  match t with
  | [] => 0
  | Execute j _ :: t => (if j =? i then 1 else 0) + executions i t
  | _ :: t => executions i t
  end.

(** Every request that failed without having been executed is posted again. *)
Definition live (queue : list op) (m : memory) (D : overlay) : Prop :=
  forall t s i, generated queue m D t s -> stage s i = TimedOut -> executions i t = 0 -> D t i = true.

Definition at_most_once (queue : list op) (m : memory) (D : overlay) : Prop :=
  forall t s i, generated queue m D t s -> executions i t <= 1.

(** What the application put into a place that it had consumed stays there until something new changes it: a request that
    had not been executed before, another requester, or the application. A stale execution is nothing new. *)
Definition stale_only (a : addr) (old new : trace) : Prop :=
  forall e, In e new ->
    match e with
    | Execute i _ => executions i old > 0
    | Foreign _ _ => False
    | AppReuse b _ => b <> a
    | _ => True
    end.

Definition reuse_kept (queue : list op) (m : memory) (D : overlay) : Prop :=
  forall new old a v s,
    generated queue m D (new ++ AppReuse a v :: old) s -> stale_only a old new -> mem s a = v.

(** Only the sender's own requests touch memory. *)
Fixpoint undisturbed (t : trace) : bool :=
  match t with
  | [] => true
  | Foreign _ _ :: _ | AppReuse _ _ :: _ => false
  | _ :: t => undisturbed t
  end.

(** One request, alone: memory and each answer are those of one execution. *)
Definition effect_once (o : op) (m : memory) (D : overlay) : Prop :=
  forall t s, generated [o] m D t s -> undisturbed t = true ->
    (executions 0 t > 0 -> mem s == after m o) /\ (forall r, In (Execute 0 r) t -> r = answer m o).

Lemma update_here {A} (f : nat -> A) i x : update f i x i = x.
Proof. unfold update. now rewrite Nat.eqb_refl. Qed.

Lemma update_elsewhere {A} (f : nat -> A) i x j : j <> i -> update f i x j = f j.
Proof. intro H. unfold update. apply Nat.eqb_neq in H. now rewrite H. Qed.

(** What was generated, one step at a time. *)
Lemma generated_inv queue m D e t s :
  generated queue m D (e :: t) s -> exists s0, generated queue m D t s0 /\ step queue (D t) s0 e s.
Proof. intro G. inversion G; subst. eauto. Qed.

Lemma generated_suffix queue m D new old s :
  generated queue m D (new ++ old) s -> exists s0, generated queue m D old s0.
Proof.
  revert s. induction new as [|e new IH]; simpl; intros s G; [eauto|].
  apply generated_inv in G as (s0 & G & _). eauto.
Qed.

Lemma executed_counts i r t : In (Execute i r) t -> executions i t > 0.
Proof.
  induction t as [|e t IH]; simpl; [tauto|]. intros [->|H].
  - rewrite Nat.eqb_refl. lia.
  - specialize (IH H). destruct e; simpl; lia.
Qed.

Lemma executions_app i t1 t2 : executions i (t1 ++ t2) = executions i t1 + executions i t2.
Proof. induction t1 as [|[] t1 IH]; simpl; lia. Qed.
