(** Consensus numbers (Herlihy, "Wait-Free Synchronization", 1991), decided for registers, fetch-and-add and
    compare-and-swap.

    Owns what a wait-free program is and what it means to solve consensus: there is a protocol, or there is none. A program is a
    finite tree of operations and answers, so it decides after finitely many steps of its own whatever the others do:
    wait-freedom is in the type. Programs may use the answers and their input in any way; memory may begin in any state.

    The lower bounds need no valence and no excluded middle: by induction over the trees, in every configuration in which
    all runs agree, each process that runs alone decides the same. *)

From Coq Require Import Arith Bool List Lia.
Import ListNotations.
From Shift Require Import Memory.

Inductive program :=
| Decide (v : value)
| Do (o : op) (next : result -> program).

Fixpoint uses (allowed : op -> Prop) (p : program) : Prop :=
  match p with Decide _ => True | Do o next => allowed o /\ forall r, uses allowed (next r) end.

Definition configuration : Type := memory * list program.

Inductive step : configuration -> configuration -> Prop :=
| step_of m before o next later :
    step (m, before ++ Do o next :: later) (after m o, before ++ next (answer m o) :: later).

Inductive reaches (c : configuration) : configuration -> Prop :=
| reaches_itself : reaches c c
| reaches_first c' c'' : step c c' -> reaches c' c'' -> reaches c c''.

Definition agree (c : configuration) : Prop :=
  forall m ps v w, reaches c (m, ps) -> In (Decide v) ps -> In (Decide w) ps -> v = w.

Record protocol := Protocol { start : memory; role : nat -> value -> program }.

Fixpoint cast (P : protocol) (i : nat) (inputs : list value) : list program :=
  match inputs with [] => [] | v :: inputs => role P i v :: cast P (S i) inputs end.

Definition solves (P : protocol) (n : nat) : Prop :=
  forall inputs, length inputs = n ->
    agree (start P, cast P 0 inputs) /\
    forall m ps v, reaches (start P, cast P 0 inputs) (m, ps) -> In (Decide v) ps -> In v inputs.

Definition can_solve (allowed : op -> Prop) (n : nat) : Prop :=
  exists P, (forall i v, uses allowed (role P i v)) /\ solves P n.

Definition consensus_number (allowed : op -> Prop) (n : nat) : Prop :=
  can_solve allowed n /\ ~ can_solve allowed (S n).

Definition registers (o : op) : Prop := match o with Read _ | Write _ _ => True | _ => False end.
Definition fetch_add (o : op) : Prop := match o with CompareSwap _ _ _ => False | _ => True end.
Definition compare_swap (o : op) : Prop := match o with CompareSwap _ _ _ => True | _ => False end.

(** * A process that runs alone *)

Fixpoint alone (p : program) (m : memory) : value :=
  match p with Decide v => v | Do o next => alone (next (answer m o)) (after m o) end.

Lemma alone_same p : forall m1 m2, m1 == m2 -> alone p m1 = alone p m2.
Proof.
  induction p as [v|o next IH]; intros m1 m2 E; simpl; [reflexivity|].
  rewrite (answer_same m1 m2 o E). now apply IH, after_same.
Qed.

Lemma alone_is_reached p : forall m before later,
  exists m', reaches (m, before ++ p :: later) (m', before ++ Decide (alone p m) :: later).
Proof.
  induction p as [v|o next IH]; intros m before later; simpl; [eexists; apply reaches_itself|].
  destruct (IH (answer m o) (after m o) before later) as [m' R].
  exists m'. eapply reaches_first; [apply step_of | exact R].
Qed.

Lemma agree_after c c' : agree c -> step c c' -> agree c'.
Proof. intros A S m ps v w R. apply A with m. now apply reaches_first with c'. Qed.

Lemma agree_with_the_decided m before p later v :
  agree (m, before ++ p :: later) -> In (Decide v) (before ++ later) -> alone p m = v.
Proof.
  intros A I. destruct (alone_is_reached p m before later) as [m' R].
  apply (A _ _ _ _ R); apply in_or_app.
  - right. now left.
  - apply in_app_or in I as [I|I]; [now left | right; now right].
Qed.

(** * Two processes *)

(** [o2] does and answers the same, whether [o1] was before it or not. *)
Definition hides (o1 o2 : op) : Prop :=
  forall m, after (after m o1) o2 == after m o2 /\ answer (after m o1) o2 = answer m o2.

Definition independent (o1 o2 : op) : Prop :=
  forall m, after (after m o1) o2 == after (after m o2) o1 /\
            answer (after m o1) o2 = answer m o2 /\ answer (after m o2) o1 = answer m o1.

(** Afterwards one of the two processes cannot know who was first. *)
Definition blind_pair (o1 o2 : op) : Prop := hides o1 o2 \/ hides o2 o1 \/ independent o1 o2.

Section Two.
Variable allowed : op -> Prop.
Hypothesis blind_pairs : forall o1 o2, allowed o1 -> allowed o2 -> blind_pair o1 o2.

Lemma two_decide_alike p0 : forall p1 m,
  uses allowed p0 -> uses allowed p1 -> agree (m, [p0; p1]) -> alone p0 m = alone p1 m.
Proof.
  induction p0 as [v0|o0 next0 IH0]; intros p1.
  { intros m _ _ A. symmetry. apply (agree_with_the_decided m [Decide v0] p1 []); [exact A | now left]. }
  induction p1 as [v1|o1 next1 IH1]; intros m U0 U1 A.
  { apply (agree_with_the_decided m [] (Do o0 next0) [Decide v1]); [exact A | now left]. }
  destruct U0 as [B0 U0], U1 as [B1 U1].
  assert (A0 : agree (after m o0, [next0 (answer m o0); Do o1 next1]))
    by (eapply agree_after; [exact A | apply (step_of m [] o0 next0 [Do o1 next1])]).
  assert (A1 : agree (after m o1, [Do o0 next0; next1 (answer m o1)]))
    by (eapply agree_after; [exact A | apply (step_of m [Do o0 next0] o1 next1 [])]).
  assert (E0 := IH0 _ (Do o1 next1) _ (U0 _) (conj B1 U1) A0).
  assert (E1 := IH1 _ _ (conj B0 U0) (U1 _) A1).
  simpl in E0, E1 |- *.
  destruct (blind_pairs o0 o1 B0 B1) as [H|[H|H]]; destruct (H m) as [S R].
  - rewrite E0, R. now apply alone_same.
  - rewrite <- E1, R. symmetry. now apply alone_same.
  - destruct R as [R1 R0].
    assert (A01 := agree_after _ _ A0 (step_of (after m o0) [next0 (answer m o0)] o1 next1 [])).
    assert (E01 := IH0 _ _ _ (U0 _) (U1 _) A01).
    rewrite E0, <- E01, <- E1, R0. now apply alone_same.
Qed.

Theorem two_processes_cannot : ~ can_solve allowed 2.
Proof.
  intros (P & U & S).
  destruct (S [0; 0] eq_refl) as [_ V0], (S [1; 1] eq_refl) as [_ V1], (S [0; 1] eq_refl) as [A _].
  destruct (alone_is_reached (role P 0 0) (start P) [] [role P 1 0]) as [m0 R0].
  destruct (alone_is_reached (role P 1 1) (start P) [role P 0 1] []) as [m1 R1].
  assert (D0 := V0 _ _ (alone (role P 0 0) (start P)) R0 (or_introl eq_refl)).
  assert (D1 := V1 _ _ (alone (role P 1 1) (start P)) R1 (or_intror (or_introl eq_refl))).
  assert (E := two_decide_alike _ _ _ (U 0 0) (U 1 1) A).
  simpl in D0, D1. lia.
Qed.
End Two.

(** * Three processes *)

(** Afterwards a third process cannot know who was first ("interfering" in Herlihy's paper). *)
Definition interfering (o1 o2 : op) : Prop :=
  forall m, after (after m o1) o2 == after (after m o2) o1 \/
            after (after m o1) o2 == after m o2 \/ after (after m o2) o1 == after m o1.

Section Three.
Variable allowed : op -> Prop.
Hypothesis all_interfere : forall o1 o2, allowed o1 -> allowed o2 -> interfering o1 o2.

(** Two that are about to move, and a third; the premises are what induction says of the configurations after one step and
    after both. *)
Lemma a_third_cannot_tell o1 next1 o2 next2 third m :
  interfering o1 o2 ->
  let m1 := after m o1 in
  let m2 := after m o2 in
  let m12 := after m1 o2 in
  let m21 := after m2 o1 in
  alone (next1 (answer m o1)) m1 = alone third m1 -> alone (Do o2 next2) m1 = alone third m1 ->
  alone (next2 (answer m o2)) m2 = alone third m2 -> alone (Do o1 next1) m2 = alone third m2 ->
  alone (next2 (answer m1 o2)) m12 = alone third m12 -> alone (next1 (answer m2 o1)) m21 = alone third m21 ->
  alone (Do o1 next1) m = alone (Do o2 next2) m.
Proof.
  intros I m1 m2 m12 m21 E1 F1 E2 F2 E12 E21. simpl in F1, F2 |- *.
  fold m1 in F1 |- *. fold m2 in F2 |- *. fold m12 in F1. fold m21 in F2.
  destruct (I m) as [S|[S|S]]; fold m1 m2 m12 m21 in S.
  - assert (X := alone_same third _ _ S). congruence.
  - assert (X := alone_same third _ _ S). congruence.
  - assert (X := alone_same third _ _ S). congruence.
Qed.

Ltac decided A before p after :=
  first [ apply (agree_with_the_decided _ before p after); [exact A | simpl; tauto]
        | symmetry; apply (agree_with_the_decided _ before p after); [exact A | simpl; tauto] ].

Lemma three_decide_alike p0 : forall p1 p2 m,
  uses allowed p0 -> uses allowed p1 -> uses allowed p2 -> agree (m, [p0; p1; p2]) ->
  alone p0 m = alone p1 m /\ alone p1 m = alone p2 m.
Proof.
  induction p0 as [v0|o0 next0 IH0]; intros p1.
  { intros p2 m _ _ _ A.
    assert (alone p1 m = v0) by decided A [Decide v0] p1 [p2].
    assert (alone p2 m = v0) by decided A [Decide v0; p1] p2 (@nil program). simpl. split; congruence. }
  induction p1 as [v1|o1 next1 IH1]; intros p2.
  { intros m _ _ _ A.
    assert (alone (Do o0 next0) m = v1) by decided A (@nil program) (Do o0 next0) [Decide v1; p2].
    assert (alone p2 m = v1) by decided A [Do o0 next0; Decide v1] p2 (@nil program). split; simpl in *; congruence. }
  induction p2 as [v2|o2 next2 IH2]; intros m U0 U1 U2 A.
  { assert (alone (Do o0 next0) m = v2) by decided A (@nil program) (Do o0 next0) [Do o1 next1; Decide v2].
    assert (alone (Do o1 next1) m = v2) by decided A [Do o0 next0] (Do o1 next1) [Decide v2]. split; simpl in *; congruence. }
  assert (V0 := U0). assert (V1 := U1). assert (V2 := U2).
  destruct V0 as [B0 V0], V1 as [B1 V1], V2 as [B2 V2].
  assert (A0 := agree_after _ _ A (step_of m [] o0 next0 [Do o1 next1; Do o2 next2])).
  assert (A1 := agree_after _ _ A (step_of m [Do o0 next0] o1 next1 [Do o2 next2])).
  assert (A2 := agree_after _ _ A (step_of m [Do o0 next0; Do o1 next1] o2 next2 [])).
  assert (A01 := agree_after _ _ A0 (step_of _ [next0 (answer m o0)] o1 next1 [Do o2 next2])).
  assert (A10 := agree_after _ _ A1 (step_of _ [] o0 next0 [next1 (answer m o1); Do o2 next2])).
  assert (A12 := agree_after _ _ A1 (step_of _ [Do o0 next0; next1 (answer m o1)] o2 next2 [])).
  assert (A21 := agree_after _ _ A2 (step_of _ [Do o0 next0] o1 next1 [next2 (answer m o2)])).
  destruct (IH0 _ _ _ _ (V0 _) U1 U2 A0) as [E0 F0].
  destruct (IH1 _ _ _ U0 (V1 _) U2 A1) as [E1 F1].
  destruct (IH2 _ _ U0 U1 (V2 _) A2) as [E2 F2].
  destruct (IH0 _ _ _ _ (V0 _) (V1 _) U2 A01) as [E01 F01].
  destruct (IH0 _ _ _ _ (V0 _) (V1 _) U2 A10) as [E10 F10].
  destruct (IH1 _ _ _ U0 (V1 _) (V2 _) A12) as [E12 F12].
  destruct (IH1 _ _ _ U0 (V1 _) (V2 _) A21) as [E21 F21].
  split.
  - apply (a_third_cannot_tell o0 next0 o1 next1 (Do o2 next2)); auto; congruence.
  - apply (a_third_cannot_tell o1 next1 o2 next2 (Do o0 next0)); auto; congruence.
Qed.

Theorem three_processes_cannot : ~ can_solve allowed 3.
Proof.
  intros (P & U & S).
  destruct (S [0; 0; 0] eq_refl) as [_ V0], (S [1; 1; 1] eq_refl) as [_ V1], (S [0; 1; 1] eq_refl) as [A _].
  destruct (alone_is_reached (role P 0 0) (start P) [] [role P 1 0; role P 2 0]) as [m0 R0].
  destruct (alone_is_reached (role P 1 1) (start P) [role P 0 1] [role P 2 1]) as [m1 R1].
  assert (D0 := V0 _ _ (alone (role P 0 0) (start P)) R0 (or_introl eq_refl)).
  assert (D1 := V1 _ _ (alone (role P 1 1) (start P)) R1 (or_intror (or_introl eq_refl))).
  destruct (three_decide_alike _ _ _ _ (U 0 0) (U 1 1) (U 2 1) A) as [E _].
  simpl in D0, D1. lia.
Qed.
End Three.

(** * What fewer processes can *)

Lemma step_beside m ps c q : step (m, ps) c -> step (m, ps ++ [q]) (fst c, snd c ++ [q]).
Proof. intro S. inversion S; subst. simpl. rewrite <- !app_assoc. simpl. apply step_of. Qed.

Lemma reaches_beside c c' q : reaches c c' -> reaches (fst c, snd c ++ [q]) (fst c', snd c' ++ [q]).
Proof.
  induction 1 as [c|c c' c'' S R IH]; [apply reaches_itself|].
  destruct c as [m ps]. eapply reaches_first; [apply (step_beside _ _ _ q S) | exact IH].
Qed.

Lemma cast_app P i inputs v : cast P i (inputs ++ [v]) = cast P i inputs ++ [role P (i + length inputs) v].
Proof.
  revert i. induction inputs as [|w inputs IH]; intro i; simpl.
  - now rewrite Nat.add_0_r.
  - rewrite IH. simpl. now rewrite Nat.add_succ_r.
Qed.

Theorem fewer_can allowed n : can_solve allowed (S n) -> can_solve allowed n.
Proof.
  intros (P & U & S). exists P. split; [exact U|]. intros inputs L.
  destruct inputs as [|x inputs].
  { split; [intros m ps v w R | intros m ps v R];
      inversion R as [|? ? T]; subst; try easy; inversion T as [? [|] ? ? ? E]; discriminate E. }
  assert (L' : length ((x :: inputs) ++ [x]) = Datatypes.S n) by (rewrite app_length, L; simpl; lia).
  destruct (S _ L') as [A V]. rewrite cast_app in A, V.
  split.
  - intros m ps v w R I J. apply (reaches_beside _ _ (role P (0 + length (x :: inputs)) x)) in R. simpl in R.
    apply (A _ _ v w R); apply in_or_app; now left.
  - intros m ps v R I. apply (reaches_beside _ _ (role P (0 + length (x :: inputs)) x)) in R.
    specialize (V _ _ v R (in_or_app _ _ _ (or_introl I))).
    apply in_app_or in V as [V|[<-|[]]]; [exact V | now left].
Qed.

Corollary more_cannot allowed n : ~ can_solve allowed n -> forall k, n <= k -> ~ can_solve allowed k.
Proof. intros N k. induction 1; [exact N|]. intro C. now apply IHle, fewer_can. Qed.
