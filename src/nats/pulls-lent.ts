import type { Msg } from "@nats-io/nats-core";

/** A borrower's pull order, as long as the server may still hand out what it asks for. */
export interface LentPull {
  /** Where what the server says of it comes to. */
  readonly reply: string;
  /** The most that may still come of it. */
  bytes: number;
  batch: number;
  /** How long it waits for what is not there yet. */
  readonly waitMs: number;
  /** Lets it go to the server. */
  leave(): void;
  /** Tells who asked to ask again. */
  putOff(): void;
}

/** What the pulls of one subscription are counted by. */
export interface PullAccount {
  /** Lets a pull leave as soon as there is room for all that it asks for. */
  ask(pull: LentPull): void;
  /** Whether what has come was asked for by one of them, so that there is room for it. */
  came(message: Msg, size: number): boolean;
  /** Nothing more comes of any. */
  close(): void;
}

/** How long a server may take beyond a pull's own time. */
const graceMs = 5_000;

/** How long a pull is held back: a borrower takes one that nothing is heard of in 2 s for lost. */
const heldMs = 1_500;

/** Of how many pulls all that they ask for has room at the same time. */
const atOnce = 16;

const subjectOfPulls = "$JS.API.CONSUMER.MSG.NEXT.";

/**
 * What many ask for at the same time is more than one connection may have in hand: the server would take it for a slow
 * consumer, and close it for all. So pulls share out the room there is, and those for which there is none wait for the others.
 */
export function openPullAccounts(mostBytes: number, inHand: () => number) {
  const under = new Map<LentPull, number>(); // way, until then
  const held: LentPull[] = [];
  let asked = 0;

  function over(pull: LentPull): void {
    if (under.delete(pull)) asked -= pull.bytes;
  }

  /** Lets those leave for which there is room now. */
  function release(): void {
    for (let next = held[0]; next; next = held[0]) {
      const taken = inHand() + asked;
      if (taken > 0 && taken + next.bytes > mostBytes) return;
      held.shift();
      under.set(next, Date.now() + next.waitMs + graceMs);
      asked += next.bytes;
      next.leave();
    }
  }

  function sweep(): void {
    for (const [pull, until] of under) if (until < Date.now()) over(pull);
    release();
  }

  function putOff(pull: LentPull): void {
    sweep();
    const at = held.indexOf(pull);
    if (at < 0) return;
    held.splice(at, 1);
    pull.putOff();
  }

  function open(): PullAccount {
    let pulls: LentPull[] = [];
    return {
      ask(pull) {
        pulls.push(pull);
        held.push(pull);
        sweep();
        if (held.includes(pull)) setTimeout(putOff, heldMs, pull);
      },
      came(message, size) {
        pulls = pulls.filter((pull) => under.has(pull) || held.includes(pull));
        const told = pulls.find(({ reply }) => reply === message.subject);
        if (told) over(told);
        // of a delivery the server does not say which pull it is for: together they count the same
        const first = told ? undefined : pulls.find((pull) => under.has(pull));
        if (first) {
          const less = Math.min(size, first.bytes);
          first.bytes -= less;
          first.batch -= 1;
          asked -= less;
          if (first.batch === 0 || first.bytes === 0) over(first);
        }
        return told !== undefined || first !== undefined;
      },
      close() {
        for (const pull of pulls) {
          over(pull);
          const at = held.indexOf(pull);
          if (at >= 0) held.splice(at, 1);
        }
        pulls = [];
        release();
      },
    };
  }

  return { open, release };
}

/**
 * What a pull asks for, and how it is written with no more bytes than its share: never with fewer than a message may have,
 * or it would be told of one that is too large. Undefined for what is none.
 */
export function pullIn(
  { subject, payload }: { readonly subject: string; readonly payload: Uint8Array | string },
  { mostBytes, maxPayload }: { mostBytes: number; maxPayload: number },
): { bytes: number; batch: number; waitMs: number; payload: string } | undefined {
  if (!subject.startsWith(subjectOfPulls)) return undefined;
  const text = typeof payload === "string" ? payload : new TextDecoder().decode(payload);
  let body: { batch?: number; expires?: number; max_bytes?: number };
  try {
    body = JSON.parse(text);
  } catch {
    return undefined;
  }
  const largest = maxPayload + 4_096; // with its subjects
  const share = Math.max(Math.floor(mostBytes / atOnce), largest);
  const { batch = 1, expires = 0, max_bytes = Infinity } = body;
  const bytes = Math.min(max_bytes, batch * largest);
  const waitMs = expires / 1_000_000;
  if (bytes <= share) return { bytes, batch, waitMs, payload: text };
  return {
    bytes: share,
    batch,
    waitMs,
    payload: JSON.stringify({ ...body, max_bytes: share - ((body.max_bytes ?? 0) % 8) }),
  };
}
