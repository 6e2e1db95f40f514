(** The words of the decision table, as src/proto/policy.rs and src/proto/ledger have them. *)

Inductive opcode := Write | WriteImm | Send | SendImm | Read | FetchAdd | CompareSwap.

(** What all incarnations together prove of a request. *)
Inductive state := Executed | Partial | NotExecuted | Unknown.

(** The operator's policy for what is unknown. *)
Inductive on_unknown := PolicyReplay | PolicyError.

Inductive reason :=
| SendUnknown | WriteImmUnknown | WriteImmBegun | WriteUnknown | WriteBeforeStop
| ReadFenced | ReadBegun | AtomicResultLost | AtomicUnknown.

Inductive verdict := Complete | Replay | ReplayFromProven | Error (why : reason).

(** What one incarnation's report proves of one posting. *)
Inductive finding :=
| FoundExecuted
| FoundPartial (packets : nat)
| FoundUntouched
| FoundBehind
| FoundIncomplete
| FoundNothing.

Definition consumes_receive (o : opcode) : bool :=
  match o with Send | SendImm | WriteImm => true | _ => false end.

Definition is_send (o : opcode) : bool := match o with Send | SendImm => true | _ => false end.

Definition is_atomic (o : opcode) : bool := match o with FetchAdd | CompareSwap => true | _ => false end.
