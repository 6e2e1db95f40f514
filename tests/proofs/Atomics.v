(** Theorem 2, "Non-Idempotency of Atomic Operations": what a repeated atomic does, that its history is not linearizable,
    and who has to look to see it. *)

From Coq Require Import Arith Bool List Permutation Lia.
Import ListNotations.
From Shift Require Import Memory Trace Retransmission Linearizability.

(** * a. Fetch-and-add *)

Theorem a_repeated_fetch_add_adds_twice m a d :
  let o := FetchAdd a d in
  after m o a = m a + d /\ answer m o = Got (m a) /\
  after (after m o) o a = m a + 2 * d /\ answer (after m o) o = Got (m a + d).
Proof.
  cbv zeta. unfold answer. cbn [effect place fst snd]. rewrite !after_at by reflexivity.
  cbn [effect fst snd place]. repeat split; try lia; f_equal; lia.
Qed.

(** The repetition's answer reaches the application. *)
Definition fetch_add_answered (a : addr) (d v : value) : trace :=
  [Completion 0 (Got (v + d))] ++ again (Got (v + d)) ++ ack_lost (FetchAdd a d) (Got v).

(** Its answer does not, and somebody reads the word. *)
Definition fetch_add_observed (a : addr) (d v : value) : trace :=
  [Foreign (Read a) (Got (v + d + d))] ++ again (Got (v + d)) ++ ack_lost (FetchAdd a d) (Got v).

#[local] Hint Unfold fetch_add_answered fetch_add_observed : traces.

Lemma fetch_add_answered_is_generated m a d D :
  D (ack_lost (FetchAdd a d) (Got (m a))) 0 = true ->
  exists s, generated [FetchAdd a d] m D (fetch_add_answered a d (m a)) s.
Proof.
  intro H. eexists. generate; unfold answer; simpl; now rewrite ?after_at.
Qed.

Lemma fetch_add_observed_is_generated m a d D :
  D (ack_lost (FetchAdd a d) (Got (m a))) 0 = true ->
  exists s, generated [FetchAdd a d] m D (fetch_add_observed a d (m a)) s.
Proof.
  intro H. eexists. generate; unfold answer; simpl; rewrite ?(after_here _ (FetchAdd a d)); simpl;
    now rewrite ?after_at.
Qed.

Theorem fetch_add_answered_is_not_linearizable m a d :
  d <> 0 -> ~ linearizable m (history (fetch_add_answered a d (m a))).
Proof.
  intros N (order & dropped & P & F & _ & L). simpl in P.
  apply all_of_one in P as [[-> ->]|[-> ->]].
  - inversion F as [|c l C]; subst. discriminate C.
  - simpl in L. destruct L as [E _]. injection E. lia.
Qed.

(** Even if the sender never hears of it: an addition that happened at most once leaves [v] or [v + d]. *)
Theorem fetch_add_observed_is_not_linearizable m a d :
  d <> 0 -> ~ linearizable m (history (fetch_add_observed a d (m a))).
Proof.
  intros N (order & dropped & P & F & _ & L). simpl in P.
  set (r := Call None (Read a) _ _) in P. set (s := Call (Some 0) _ _ _) in P.
  assert (R : In r order) by (eapply complete_is_ordered; [exact P | exact F | now left | discriminate]).
  assert (Q : order = [r] \/ order = [r; s] \/ order = [s; r]).
  { apply Permutation_sym, Permutation_length_2_inv in P.
    destruct order as [|x [|y [|z order]]]; [destruct R | | | ]; destruct P as [P|P]; try discriminate P;
      injection P; intros; subst; auto.
    destruct R as [R|[]]. discriminate R. }
  destruct Q as [->|[->| ->]]; simpl in L; unfold answer in L; simpl in L.
  - destruct L as [E _]. injection E. lia.
  - destruct L as [E _]. injection E. lia.
  - destruct L as (_ & E & _). rewrite after_at in E by reflexivity. simpl in E. injection E. lia.
Qed.

(** The same answered as if it had been done once: the reader sees it. *)
Theorem two_additions_behind_one_answer_are_not_linearizable m a d before later :
  d <> 0 -> before < later ->
  ~ linearizable m
      [Call None (Read a) later (Some (later, Got (m a + 2 * d))); Call (Some 0) (FetchAdd a d) 0 (Some (before, Got (m a)))].
Proof.
  intros N B (order & dropped & P & F & O & L).
  apply the_last_is_last in P as (first & -> & P); auto; [|discriminate].
  apply all_of_one in P as [[-> ->]|[-> ->]].
  - inversion F as [|c l C]; subst. discriminate C.
  - simpl in L. destruct L as (_ & E & _). unfold answer in E. simpl in E.
    rewrite after_at in E by reflexivity. simpl in E. injection E. lia.
Qed.

Theorem no_transparent_overlay_keeps_fetch_add_linearizable D m a d :
  transparent D -> d <> 0 -> live [FetchAdd a d] m D ->
  exists t s, generated [FetchAdd a d] m D t s /\ executions 0 t = 2 /\ ~ linearizable m (history t).
Proof.
  intros T N L.
  assert (H : D (ack_lost (FetchAdd a d) (Got (m a))) 0 = true) by now apply (a_live_overlay_repeats (FetchAdd a d) m).
  destruct (fetch_add_answered_is_generated m a d D H) as (s & G).
  exists (fetch_add_answered a d (m a)), s. split; [exact G | split; [reflexivity|]].
  now apply fetch_add_answered_is_not_linearizable.
Qed.

(** * b. Compare-and-swap *)

(** The sender's swap from [e] to [n], another's from [n] back to [e], and the sender's once more. *)
Definition swapped_twice (a : addr) (e n : value) : trace :=
  rev [Send 0 (CompareSwap a e n); Receive 0; Execute 0 (Swapped true e); Foreign (CompareSwap a n e) (Swapped true n);
       AckLost 0; Timeout 0; Resend 0; Receive 0; Execute 0 (Swapped true e); Completion 0 (Swapped true e)].

Definition swapped_twice_observed (a : addr) (e n : value) : trace :=
  Foreign (Read a) (Got n) :: swapped_twice a e n.

Definition before_the_repetition (a : addr) (e n : value) : trace :=
  rev [Send 0 (CompareSwap a e n); Receive 0; Execute 0 (Swapped true e); Foreign (CompareSwap a n e) (Swapped true n);
       AckLost 0; Timeout 0].

#[global] Hint Unfold swapped_twice swapped_twice_observed before_the_repetition : traces.

Lemma swap_succeeds m a e n :
  m a = e -> answer m (CompareSwap a e n) = Swapped true e /\ after m (CompareSwap a e n) a = n.
Proof.
  intros <-. rewrite after_at by reflexivity. unfold answer. simpl. now rewrite Nat.eqb_refl.
Qed.

Lemma swapped_twice_observed_is_generated m a e n D :
  m a = e -> D (before_the_repetition a e n) 0 = true ->
  exists s, generated [CompareSwap a e n] m D (swapped_twice_observed a e n) s.
Proof.
  intros E H.
  destruct (swap_succeeds m a e n E) as [A1 W1].
  destruct (swap_succeeds _ a n e W1) as [A2 W2].
  destruct (swap_succeeds _ a e n W2) as [A3 W3].
  eexists. generate; simpl; auto. unfold answer. simpl. now rewrite W3.
Qed.

(** Both succeed, the request was executed twice, and what the other one did is gone. *)
Theorem a_repeated_swap_succeeds_twice m a e n D :
  m a = e -> D (before_the_repetition a e n) 0 = true ->
  exists s, generated [CompareSwap a e n] m D (swapped_twice a e n) s /\
            executions 0 (swapped_twice a e n) = 2 /\ mem s a = n.
Proof.
  intros E H. destruct (swapped_twice_observed_is_generated m a e n D E H) as (s & G).
  apply generated_inv in G as (s0 & G & S). exists s0. split; [exact G | split; [reflexivity|]].
  inversion S; subst. match goal with R : answer _ _ = _ |- _ => unfold answer in R; simpl in R; congruence end.
Qed.

Section Orders.
Variables (a : addr) (e n : value).
Let sender := Call (Some 0) (CompareSwap a e n) 0 (Some (9, Swapped true e)).
Let other := Call None (CompareSwap a n e) 3 (Some (3, Swapped true n)).
Let reader := Call None (Read a) 10 (Some (10, Got n)).

Lemma history_of_swapped_twice : history (swapped_twice_observed a e n) = [reader; other; sender].
Proof. reflexivity. Qed.

Theorem swapped_twice_observed_is_not_linearizable m :
  m a = e -> e <> n -> ~ linearizable m (history (swapped_twice_observed a e n)).
Proof.
  intros E N (order & dropped & P & F & O & L). rewrite history_of_swapped_twice in P.
  apply the_last_is_last in P as (first & -> & P); auto; [|discriminate|repeat constructor; simpl; lia].
  destruct (swap_succeeds m a e n E) as [_ W1]. destruct (swap_succeeds _ a n e W1) as [_ W2].
  apply all_of_two in P as [->| ->]; auto; try discriminate; simpl in L.
  - destruct L as [X _]. unfold answer in X. simpl in X. rewrite E in X.
    apply Nat.eqb_neq in N. rewrite N in X. discriminate X.
  - destruct L as (_ & _ & X & _). unfold answer in X. simpl in X. rewrite W2 in X. congruence.
Qed.

(** Without the reader there is an order: the sender, then the other. The paper claims the violation and names no
    observer. *)
Theorem swapped_twice_alone_is_linearizable m :
  m a = e -> linearizable m (history (swapped_twice a e n)).
Proof.
  intro E. destruct (swap_succeeds m a e n E) as [A1 W1]. destruct (swap_succeeds _ a n e W1) as [A2 _].
  exists [sender; other], []. change (history (swapped_twice a e n)) with [other; sender].
  repeat split; simpl; auto.
  - apply perm_swap.
  - repeat constructor. unfold precedes. simpl. lia.
Qed.
End Orders.

Theorem no_transparent_overlay_keeps_compare_swap_linearizable D m a e n :
  transparent D -> m a = e -> e <> n -> live [CompareSwap a e n] m D ->
  exists t s, generated [CompareSwap a e n] m D t s /\ executions 0 t = 2 /\ ~ linearizable m (history t).
Proof.
  intros T E N L.
  assert (H : D (before_the_repetition a e n) 0 = true) by now apply (a_live_overlay_repeats (CompareSwap a e n) m).
  destruct (swapped_twice_observed_is_generated m a e n D E H) as (s & G).
  exists (swapped_twice_observed a e n), s. split; [exact G | split; [reflexivity|]].
  now apply swapped_twice_observed_is_not_linearizable.
Qed.

(** A run without a fault, to show that histories can be linearizable at all. *)
Theorem without_a_fault_it_is_linearizable m o :
  exists t s, generated [o] m blind t s /\ stage s 0 = Completed /\ linearizable m (history t).
Proof.
  exists (rev [Send 0 o; Receive 0; Execute 0 (answer m o); Completion 0 (answer m o)]). eexists.
  split; [generate | split; [reflexivity|]].
  exists [Call (Some 0) o 0 (Some (3, answer m o))], []. repeat split; simpl; auto.
Qed.
