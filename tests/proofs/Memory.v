(** What requests do to remote memory.

    Owns the four operations and how often they may be repeated without a trace. Refuses to own requests, packets and
    who sees what. Each operation acts on one word; words are unbounded numbers, so an addition never comes round. *)

From Coq Require Import Arith Bool Lia.

Definition addr := nat.
Definition value := nat.
Definition memory := addr -> value.

(** Two memories are compared word by word: functional extensionality would be an axiom. *)
Definition same (m1 m2 : memory) : Prop := forall a, m1 a = m2 a.
Infix "==" := same (at level 70).

Definition set (m : memory) (a : addr) (v : value) : memory := fun b => if b =? a then v else m b.

Inductive op :=
| Read (a : addr)
| Write (a : addr) (v : value)
| FetchAdd (a : addr) (d : value)
| CompareSwap (a : addr) (expected new : value).

Inductive result :=
| Done
| Got (old : value)
| Swapped (success : bool) (old : value).

Definition place (o : op) : addr :=
  match o with Read a | Write a _ | FetchAdd a _ | CompareSwap a _ _ => a end.

(** The word after the operation, and its answer. *)
Definition effect (o : op) (v : value) : value * result :=
  match o with
  | Read _ => (v, Got v)
  | Write _ w => (w, Done)
  | FetchAdd _ d => (v + d, Got v)
  | CompareSwap _ e n => if v =? e then (n, Swapped true v) else (v, Swapped false v)
  end.

Definition after (m : memory) (o : op) : memory := set m (place o) (fst (effect o (m (place o)))).
Definition answer (m : memory) (o : op) : result := snd (effect o (m (place o))).

Lemma same_refl m : m == m.
Proof. intro; reflexivity. Qed.

Lemma same_sym m1 m2 : m1 == m2 -> m2 == m1.
Proof. intros H a. symmetry. apply H. Qed.

Lemma same_trans m1 m2 m3 : m1 == m2 -> m2 == m3 -> m1 == m3.
Proof. intros H K a. rewrite H. apply K. Qed.

Lemma set_here m a v : set m a v a = v.
Proof. unfold set. now rewrite Nat.eqb_refl. Qed.

Lemma set_elsewhere m a v b : b <> a -> set m a v b = m b.
Proof. intro H. unfold set. apply Nat.eqb_neq in H. now rewrite H. Qed.

Lemma after_here m o : after m o (place o) = fst (effect o (m (place o))).
Proof. apply set_here. Qed.

Lemma after_at m o a : place o = a -> after m o a = fst (effect o (m a)).
Proof. intros <-. apply after_here. Qed.

Lemma after_elsewhere m o b : b <> place o -> after m o b = m b.
Proof. apply set_elsewhere. Qed.

Lemma after_same m1 m2 o : m1 == m2 -> after m1 o == after m2 o.
Proof. intros H a. unfold after, set. rewrite (H (place o)). destruct (a =? place o); auto. Qed.

Lemma answer_same m1 m2 o : m1 == m2 -> answer m1 o = answer m2 o.
Proof. intro H. unfold answer. now rewrite H. Qed.

(** Memories that differ from one another in one place only are the same if that place is. *)
Lemma same_but_at a m1 m2 : (forall b, b <> a -> m1 b = m2 b) -> m1 a = m2 a -> m1 == m2.
Proof. intros H K b. destruct (Nat.eq_dec b a) as [->|N]; auto. Qed.

(** * Repetition ("Model and Definitions", Idempotency: the same state and the same answer) *)

Definition idempotent (m : memory) (o : op) : Prop :=
  after (after m o) o == after m o /\ answer (after m o) o = answer m o.

Lemma idempotent_word m o :
  idempotent m o <->
  effect o (fst (effect o (m (place o)))) = effect o (m (place o)).
Proof.
  unfold idempotent, answer. rewrite after_here. split.
  - intros [H K]. specialize (H (place o)). rewrite !after_here in H.
    destruct (effect o (fst (effect o (m (place o))))), (effect o (m (place o))). simpl in *. congruence.
  - intro H. rewrite H. split; [|reflexivity].
    apply (same_but_at (place o)).
    + intros b N. now rewrite after_elsewhere.
    + now rewrite !after_here, H.
Qed.

Lemma read_is_idempotent m a : idempotent m (Read a).
Proof. apply idempotent_word. reflexivity. Qed.

Lemma write_is_idempotent m a v : idempotent m (Write a v).
Proof. apply idempotent_word. reflexivity. Qed.

Theorem fetch_add_is_idempotent_only_by_zero m a d : idempotent m (FetchAdd a d) <-> d = 0.
Proof.
  rewrite idempotent_word. simpl. split.
  - intro H. injection H. lia.
  - intros ->. now rewrite !Nat.add_0_r.
Qed.

Theorem compare_swap_is_idempotent_unless_it_changes m a e n :
  idempotent m (CompareSwap a e n) <-> m a <> e \/ e = n.
Proof.
  rewrite idempotent_word. simpl. destruct (Nat.eqb_spec (m a) e) as [E|E]; simpl.
  - destruct (Nat.eqb_spec n e) as [F|F]; subst; split; intro H; auto.
    + discriminate.
    + destruct H as [H|H]; congruence.
  - apply Nat.eqb_neq in E as B. rewrite B. tauto.
Qed.
