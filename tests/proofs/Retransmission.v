(** Theorem 1, "Indistinguishability of Packet Loss and ACK Loss": no overlay that decides by the sender's view is both
    live and safe. Both halves: a pure WRITE whose memory the receiving application used again, and a request whose
    repetition has an effect. Then how tight that is: one that sees the receiver is live and safe, and blind repetition
    is right where a repetition has no effect.

    Nothing is assumed of traces but that the system of Trace.v generates them, and the two traces of the argument are
    shown to be generated: the theorem is about runs that there are. *)

From Coq Require Import Arith Bool List Lia.
Import ListNotations.
From Shift Require Import Memory Trace.

(** * Running the system *)

Ltac holds :=
  simpl; first [ reflexivity | assumption | apply update_here | apply set_here | intros; lia
               | left; reflexivity | right; left; reflexivity | idtac ].

Ltac take :=
  first [ eapply step_send | eapply step_packet_lost | eapply step_receive | eapply step_execute
        | eapply step_ack_lost | eapply step_completion | eapply step_timeout | eapply step_resend
        | eapply step_foreign | eapply step_consume | eapply step_reuse ]; holds.

Create HintDb traces.

Ltac generate :=
  autounfold with traces; simpl;
  repeat lazymatch goal with |- generated _ _ _ (_ :: _) _ => eapply generated_step end;
  [ apply generated_nothing | .. ]; take.

(** * The two traces *)

Definition packet_lost (o : op) : trace := rev [Send 0 o; PacketLost 0; Timeout 0].

Definition ack_lost (o : op) (r : result) : trace := rev [Send 0 o; Receive 0; Execute 0 r; AckLost 0; Timeout 0].

Definition reused (a : addr) (v own : value) : trace :=
  rev [Send 0 (Write a v); Receive 0; Execute 0 Done; AppConsume a v; AppReuse a own; AckLost 0; Timeout 0].

#[global] Hint Unfold packet_lost ack_lost reused : traces.

Theorem packet_lost_is_generated o m D :
  exists s, generated [o] m D (packet_lost o) s /\ mem s = m /\ stage s 0 = TimedOut.
Proof. eexists. split; [generate | now split]. Qed.

Theorem ack_lost_is_generated o m D :
  exists s, generated [o] m D (ack_lost o (answer m o)) s /\ mem s = after m o /\ stage s 0 = TimedOut.
Proof. eexists. split; [generate | now split]. Qed.

Theorem reused_is_generated a v own m D :
  exists s, generated [Write a v] m D (reused a v own) s /\ mem s a = own /\ stage s 0 = TimedOut.
Proof. eexists. split; [generate | split; [apply set_here | reflexivity]]. Qed.

Theorem the_sender_sees_the_same o r a v own :
  view (packet_lost o) = view (ack_lost o r) /\ view (packet_lost (Write a v)) = view (reused a v own).
Proof. now split. Qed.

(** What was posted again is executed again. *)
Definition again (r : result) : trace := rev [Resend 0; Receive 0; Execute 0 r].
#[global] Hint Unfold again : traces.

Lemma repeated_is_generated o m D :
  D (ack_lost o (answer m o)) 0 = true ->
  exists s, generated [o] m D (again (answer (after m o) o) ++ ack_lost o (answer m o)) s /\ mem s = after (after m o) o.
Proof. intro H. eexists. split; [generate | reflexivity]. Qed.

Lemma ghost_is_generated a v own m D :
  D (reused a v own) 0 = true ->
  exists s, generated [Write a v] m D (again Done ++ reused a v own) s /\ mem s a = v.
Proof. intro H. eexists. split; [generate | apply set_here]. Qed.

(** A live overlay repeats whatever it cannot tell from a lost packet. *)
Lemma a_live_overlay_repeats o m D t :
  transparent D -> live [o] m D -> view (packet_lost o) = view t -> D t 0 = true.
Proof.
  intros T L V. rewrite <- (T _ _ 0 V).
  destruct (packet_lost_is_generated o m D) as (s & G & _ & X). now apply (L _ s).
Qed.

(** * Theorem 1 *)

Theorem no_transparent_overlay_with_memory_reuse D m a v own :
  transparent D -> v <> own -> ~ (live [Write a v] m D /\ reuse_kept [Write a v] m D).
Proof.
  intros T N [L S].
  assert (H : D (reused a v own) 0 = true) by now apply (a_live_overlay_repeats (Write a v) m).
  destruct (ghost_is_generated a v own m D H) as (s & G & M).
  apply N. rewrite <- M.
  eapply (S (again Done ++ rev [AckLost 0; Timeout 0])); [exact G|].
  intros e I. simpl in I. intuition (subst; simpl; auto).
Qed.

Theorem no_transparent_overlay_for_what_is_not_idempotent D m o :
  transparent D -> ~ idempotent m o -> ~ (live [o] m D /\ effect_once o m D).
Proof.
  intros T N [L S].
  assert (H : D (ack_lost o (answer m o)) 0 = true) by now apply (a_live_overlay_repeats o m).
  destruct (repeated_is_generated o m D H) as (s & G & M).
  destruct (S _ _ G eq_refl) as [W A]. apply N. split.
  - rewrite <- M. apply W. simpl. lia.
  - apply A. now left.
Qed.

(** "Impossibility Results for Transparent RDMA Failover", Theorem 1, where safety is to execute at most once. *)
Theorem no_transparent_overlay_executes_at_most_once D m o :
  transparent D -> ~ (live [o] m D /\ at_most_once [o] m D).
Proof.
  intros T [L S].
  assert (H : D (ack_lost o (answer m o)) 0 = true) by now apply (a_live_overlay_repeats o m).
  destruct (repeated_is_generated o m D H) as (s & G & _).
  specialize (S _ _ 0 G). simpl in S. lia.
Qed.

(** * Who sees the receiver *)

Definition receiver_seen : overlay := fun t i => executions i t =? 0.

Definition fits (x : phase) (n : nat) : Prop :=
  match x with
  | Unposted | InFlight _ | Lost | Received _ => n = 0
  | Executed _ _ | Unacknowledged | Completed => n = 1
  | TimedOut => n <= 1
  end.

Lemma fits_timed_out s i n : given_up s i -> fits (stage s i) n -> n <= 1.
Proof.
  intros [E|[E|[E _]]]; [rewrite E; simpl; lia ..|].
  destruct (stage s i) as [|[]| |[]|[] r| | |]; simpl; try discriminate; lia.
Qed.

Lemma receiver_seen_invariant queue m t s :
  generated queue m receiver_seen t s -> forall i, fits (stage s i) (executions i t).
Proof.
  induction 1 as [|t s e s' G IH S]; intro k; [reflexivity|].
  specialize (IH k).
  inversion S; subst; simpl; unfold update; try exact IH;
    try match goal with |- context [?j =? k] => rewrite (Nat.eqb_sym j k) end;
    match goal with |- context [k =? ?j] => destruct (Nat.eqb_spec k j) as [->|N] end; simpl; try exact IH;
    repeat match goal with H : stage s _ = _ |- _ => rewrite H in IH; simpl in IH end; try lia.
  - eapply fits_timed_out; eassumption.
  - match goal with H : receiver_seen _ _ = true |- _ => now apply Nat.eqb_eq in H end.
Qed.

Theorem who_sees_the_receiver_executes_at_most_once queue m : at_most_once queue m receiver_seen.
Proof.
  intros t s i G. generalize (receiver_seen_invariant _ _ _ _ G i).
  destruct (stage s i); simpl; lia.
Qed.

Theorem who_sees_the_receiver_is_live queue m : live queue m receiver_seen.
Proof. intros t s i _ _ E. now apply Nat.eqb_eq. Qed.

Lemma untouched queue m D a v new old s :
  generated queue m D (new ++ AppReuse a v :: old) s ->
  (forall e, In e new -> match e with Execute _ _ | Foreign _ _ => False | AppReuse b _ => b <> a | _ => True end) ->
  mem s a = v.
Proof.
  revert s. induction new as [|e new IH]; intros s G C; simpl in G; apply generated_inv in G as (s0 & G & S).
  - inversion S; subst. apply set_here.
  - assert (K : mem s0 a = v) by (apply IH; [exact G | intros; apply C; now right]).
    specialize (C e (or_introl eq_refl)).
    inversion S; subst; simpl in *; try contradiction; auto.
    now rewrite set_elsewhere by congruence.
Qed.

Theorem who_sees_the_receiver_keeps_what_was_reused queue m : reuse_kept queue m receiver_seen.
Proof.
  intros new old a v s G C. eapply untouched; [exact G|].
  intros e I. specialize (C e I). destruct e; auto.
  apply executed_counts in I.
  pose proof (who_sees_the_receiver_executes_at_most_once queue m _ _ i G) as B.
  rewrite executions_app in B. simpl in B. lia.
Qed.

Theorem who_sees_the_receiver_is_not_transparent : ~ transparent receiver_seen.
Proof.
  intro T. specialize (T (packet_lost (Read 0)) (ack_lost (Read 0) (Got 0)) 0 eq_refl). discriminate.
Qed.

(** * One request alone *)

Lemma nth_error_one (o o' : op) i : nth_error [o] i = Some o' -> i = 0 /\ o' = o.
Proof. destruct i as [|[]]; simpl; intro H; now inversion H. Qed.

Lemma one_effect o m D t s :
  generated [o] m D t s -> undisturbed t = true -> idempotent m o \/ executions 0 t <= 1 ->
  (if executions 0 t =? 0 then mem s == m else mem s == after m o) /\ (forall r, In (Execute 0 r) t -> r = answer m o).
Proof.
  induction 1 as [|t s e s' G IH S]; intros U B; [split; [apply same_refl | easy]|].
  inversion S; subst; simpl in U, B |- *; try discriminate;
    try (destruct (IH U B) as [M A]; split; [exact M | intros r' [E|I]; [discriminate E | now apply A]]).
  match goal with H : nth_error [_] _ = _ |- _ => apply nth_error_one in H as [-> ->] end.
  simpl in B |- *.
  assert (B' : idempotent m o \/ executions 0 t <= 1) by (destruct B; [now left | right; lia]).
  destruct (IH U B') as [M A].
  destruct (Nat.eqb_spec (executions 0 t) 0) as [Z|Z].
  - split; [now apply after_same|]. intros r [E|I]; [|now apply A].
    injection E as <-. now apply answer_same.
  - destruct B as [[I1 I2]|B]; [|lia]. split.
    + eapply same_trans; [apply after_same, M | exact I1].
    + intros r [E|I]; [|now apply A]. injection E as <-. rewrite <- I2. now apply answer_same.
Qed.

Lemma one_effect_is_effect_once o m D :
  (forall t s, generated [o] m D t s -> idempotent m o \/ executions 0 t <= 1) -> effect_once o m D.
Proof.
  intros B t s G U. destruct (one_effect o m D t s G U (B t s G)) as [M A]. split; [|exact A].
  intro E. apply Nat.eqb_neq in M || destruct (Nat.eqb_spec (executions 0 t) 0) as [Z|Z]; [lia | exact M].
Qed.

Theorem who_sees_the_receiver_has_one_effect o m : effect_once o m receiver_seen.
Proof.
  apply one_effect_is_effect_once. intros t s G. right.
  now apply (who_sees_the_receiver_executes_at_most_once [o] m t s).
Qed.

(** Why theorem 1 asks for more than a WRITE: an overlay that always repeats is transparent, live, and harmless to what is
    idempotent as long as nobody else touches the memory. *)
Definition blind : overlay := fun _ _ => true.

Theorem blind_repetition_is_harmless_to_what_is_idempotent o m :
  idempotent m o -> transparent blind /\ live [o] m blind /\ effect_once o m blind.
Proof.
  intro I. split; [easy | split; [easy|]].
  apply one_effect_is_effect_once. intros. now left.
Qed.
