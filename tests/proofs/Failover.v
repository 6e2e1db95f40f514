(** Theorem 3, "Consensus Hierarchy Barrier": looking at remote memory does not tell whether an atomic was executed.

    Two parts, because the paper's one has two. A verifier that runs after the fault is wrong in one of two histories that
    end in the same memory (ABA), whatever operations it may use: a second NIC that can do atomics does not help, and
    consensus numbers do not enter. Two attempts that run at the same time and have to agree who was first need an object
    of consensus number 2, and registers are not. The paper derives 2-consensus from a correct verifier; there is none, so
    that implication says nothing and is not stated here. *)

From Coq Require Import Arith Bool List Lia.
Import ListNotations.
From Shift Require Import Memory Trace Retransmission Consensus Hierarchy Atomics.

Definition abort : value := 0.
Definition commit : value := 1.

(** * A verifier after the fact *)

(** It knows what the sender saw, and then runs any program on memory as the fault left it. *)
Definition verifier := list observation -> program.

Definition right (V : verifier) (queue : list op) (m : memory) : Prop :=
  forall t s, generated queue m blind t s -> stage s 0 = TimedOut ->
    alone (V (view t)) (mem s) = if executions 0 t =? 0 then abort else commit.

Lemma before_the_repetition_is_generated m a e n D :
  m a = e -> exists s, generated [CompareSwap a e n] m D (before_the_repetition a e n) s /\ stage s 0 = TimedOut /\ mem s == m.
Proof.
  intro E. destruct (swap_succeeds m a e n E) as [A1 W1]. destruct (swap_succeeds _ a n e W1) as [A2 W2].
  eexists. split; [generate | split; [reflexivity|]].
  simpl. apply (same_but_at a).
  - intros b N. now rewrite !after_elsewhere.
  - now rewrite W2.
Qed.

(** ABA: executed and undone by another, or never executed. *)
Theorem no_verifier_is_right_about_compare_swap V m a e n : m a = e -> ~ right V [CompareSwap a e n] m.
Proof.
  intros E R.
  destruct (packet_lost_is_generated (CompareSwap a e n) m blind) as (s1 & G1 & M1 & X1).
  destruct (before_the_repetition_is_generated m a e n blind E) as (s2 & G2 & X2 & M2).
  assert (R1 := R _ _ G1 X1). assert (R2 := R _ _ G2 X2).
  change (view (before_the_repetition a e n)) with (view (packet_lost (CompareSwap a e n))) in R2.
  rewrite (alone_same _ _ _ M2) in R2. rewrite M1 in R1. simpl in R1, R2. rewrite R1 in R2. discriminate R2.
Qed.

(** What the receiver's end adds: one word that its NIC writes with the execution. Then one READ is enough. *)
Definition logged (m : memory) (log : addr) (t : trace) : memory := set m log (executions 0 t).

Definition read_the_log (log : addr) : verifier :=
  fun _ => Do (Read log) (fun r => match r with Got 0 => Decide abort | _ => Decide commit end).

Theorem with_a_log_at_the_receiver_a_verifier_is_right log t m :
  alone (read_the_log log (view t)) (logged m log t) = if executions 0 t =? 0 then abort else commit.
Proof.
  simpl. unfold answer. simpl. unfold logged. rewrite set_here. now destruct (executions 0 t).
Qed.

(** * Two attempts at the same time *)

(** The attempt on the old path and the one on the new settle whose effect stands; one that is alone wins. *)
Definition arbitrates (past future : program) (m : memory) : Prop :=
  agree (m, [past; future]) /\ alone past m = commit /\ alone future m = abort.

Theorem registers_cannot_arbitrate past future m :
  uses registers past -> uses registers future -> ~ arbitrates past future m.
Proof.
  intros U1 U2 (A & C & B). assert (E := two_decide_alike registers registers_are_blind _ _ _ U1 U2 A).
  rewrite C, B in E. discriminate E.
Qed.

Theorem compare_swap_can_arbitrate :
  exists past future, uses compare_swap past /\ uses compare_swap future /\ arbitrates past future (fun _ => 0).
Proof.
  exists (take_word commit), (take_word abort).
  assert (U : forall v, uses compare_swap (take_word v)) by (intro v; split; [easy | intros [| |[] []]; easy]).
  split; [apply U | split; [apply U | split; [|easy]]].
  intros m ps v w R I J.
  assert (B : taken_by [commit; abort] (fun _ => 0, [take_word commit; take_word abort])).
  { left. split; [reflexivity|]. repeat constructor; [exists commit | exists abort]; simpl; auto. }
  apply (taken_by_reached _ _ _ B) in R.
  apply (taken_by_decided _ _ _ R) in I as [_ E], J as [_ F]. simpl in E, F. congruence.
Qed.
