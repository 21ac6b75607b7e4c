import { type Outcome, returned } from "./attempt.ts";
import type { Member } from "./held.ts";
import { type Pace, slotWaitMs } from "./pace.ts";

/** How long everyone waits for one that runs alone, while that waits itself: for a start under a rate limit, or in place. */
export const aloneWaitMs = 100;

/** Has messages wait until their consumer's rate limit, if it has one, lets them start. Each answers how they leave where it does not. */
export interface InTime {
  /** Takes a start for each that has none now, and waits for the last of them. */
  take(members: readonly Member[], options?: TakeOptions): Promise<readonly (Outcome | undefined)[]>;
  /** Waits until all may be started at once: they take new starts as long as one of them has missed its own. */
  together(members: readonly Member[], withinMs?: number): Promise<readonly (Outcome | undefined)[]>;
  /** What it takes before one may wait to run alone: by key, a start would be lost while it does. */
  beforeAlone(member: Member): Promise<Outcome | undefined>;
  /** Waits for a start while nobody else runs, if it comes before they notice; `lets` says whether it has. */
  whileAlone(member: Member): Promise<Outcome | undefined>;
  /** Whether a message may be started now. */
  lets(one: Member["one"]): boolean;
}

interface TakeOptions {
  /** How far off a start may be. @default as far as messages wait for one in hand */
  readonly withinMs?: number | undefined;
  /** Whether also those take one that may be started now. @default no */
  readonly all?: boolean;
}

/** `orReturned` answers how a message leaves where what is done ahead of its start fails. */
export function openInTime(
  pace: Pace | undefined,
  {
    now,
    isOver,
    orReturned,
  }: {
    now(): number;
    isOver(): boolean;
    orReturned(
      before: Member["before"],
      ahead: () => Promise<Outcome | undefined> | undefined,
    ): Promise<Outcome | undefined>;
  },
): InTime {
  const lets = (one: Member["one"]) => !pace || pace.lets(one);

  return { take, together, beforeAlone, whileAlone, lets };

  async function take(
    members: readonly Member[],
    { withinMs = pace?.byKey ? slotWaitMs : Infinity, all = false }: TakeOptions = {},
  ): Promise<readonly (Outcome | undefined)[]> {
    if (!pace || members.every(({ one }) => pace.lets(one))) return [];
    const taking = members.map(async ({ one, before }) => {
      if (!all && pace.lets(one)) return undefined;
      const outcome = await orReturned(before, async () => {
        const unread = await pace.find(one, before);
        if (unread) return unread;
        const slot = await pace.ask(one, withinMs);
        return "again" in slot ? pace.putOff(slot.again, before) : undefined;
      });
      if (!outcome) await pace.until(one.slot ?? 0);
      return outcome ?? (isOver() ? returned(before) : undefined);
    });
    return Promise.all(taking);
  }

  async function together(members: readonly Member[], withinMs?: number): Promise<readonly (Outcome | undefined)[]> {
    const outcomes: (Outcome | undefined)[] = [];
    for (;;) {
      const rest = [...members.entries()].filter(([n]) => !outcomes[n]);
      if (rest.every(([, { one }]) => lets(one))) return outcomes;
      const came = await take(
        rest.map(([, member]) => member),
        { withinMs, all: true },
      );
      for (const [at, [n]] of rest.entries()) outcomes[n] = came[at];
    }
  }

  async function beforeAlone(member: Member): Promise<Outcome | undefined> {
    if (!pace?.byKey) return (await together([member]))[0];
    const { one, before } = member;
    const unread = await orReturned(before, () => pace.find(one, before));
    if (unread) return unread;
    while (!isOver()) {
      const next = pace.nextFor(one);
      if (next <= now()) return undefined;
      if (next > now() + slotWaitMs) {
        return orReturned(before, async () => {
          const slot = await pace.ask(one, 0);
          return "again" in slot ? pace.putOff(slot.again, before) : undefined;
        });
      }
      await pace.until(next);
    }
    return returned(before);
  }

  async function whileAlone({ one, before }: Member): Promise<Outcome | undefined> {
    if (!pace || pace.lets(one)) return undefined;
    return orReturned(before, async () => {
      const slot = await pace.ask(one, aloneWaitMs);
      if ("at" in slot) await pace.until(slot.at);
      return undefined;
    });
  }
}
