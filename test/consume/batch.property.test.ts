import fc from "fast-check";
import { describe, expect, it } from "vitest";
import * as z from "zod";
import type { Outcome } from "../../src/consume/attempt.ts";
import { startTogether } from "../../src/consume/batch-attempt.ts";
import type { Circumstances } from "../../src/consume/circumstances.ts";
import { startClock } from "../../src/consume/clock.ts";
import type { Held } from "../../src/consume/held.ts";
import { createRounds } from "../../src/consume/rounds.ts";
import { createApp, defineConsumer, defineStream, fixed, NonRetriableError } from "../../src/index.ts";

const jobs = defineStream("JOBS", { subjects: { "jobs.a": z.object({ n: z.number() }) } });
const dead = defineStream("DEAD", { captures: ["dead.>"] });

/** What becomes of a message, or of the batch that it is in. */
type Fate = "succeeds" | "is reported" | "breaks its batch" | "breaks it for good" | "cannot be read";

const retried = { settlement: { kind: "retry", delayMs: 20 }, started: 1 };

/** How each leaves that was told apart. */
const ends: Record<Fate, unknown> = {
  succeeds: { settlement: { kind: "ack" }, started: 0 },
  "is reported": retried,
  "breaks its batch": retried,
  "breaks it for good": { settlement: { kind: "dead-letter", reason: "non-retriable" }, started: 1 },
  "cannot be read": { settlement: { kind: "dead-letter", reason: "undecodable" }, started: 0 },
};

function heldOf(n: number, fate: Fate): Held {
  const data = new TextEncoder().encode(fate === "cannot be read" ? "?" : JSON.stringify({ n }));
  const delivery = {
    subject: "jobs.a",
    data,
    bytes: data.length,
    headers: () => [],
    stream: "JOBS",
    consumer: "worker",
    pending: 0,
  };
  const place = { ackSubject: `${n}`, sequence: n, storedNs: "1700000000000000000", again: false };
  const state = { lost: false, counted: true, inside: 1, settling: false, heardAt: 0 };
  return {
    ...state,
    key: n,
    bytes: data.length,
    source: "own",
    ackSubject: `${n}`,
    delivery: { ...delivery, ...place },
  };
}

describe("whatever the messages of a batch do", () => {
  const fates = fc.array(
    fc.constantFrom<Fate>("succeeds", "is reported", "breaks its batch", "breaks it for good", "cannot be read"),
    { minLength: 1, maxLength: 20 },
  );

  it("each leaves once, by what it does itself, after 2n - 1 starts at most; those in time do, at least", async () => {
    await fc.assert(
      fc.asyncProperty(
        fates,
        fc.option(fc.integer({ min: 1, max: 20 }), { nil: Infinity }),
        async (all, startsInTime) => {
          const fateOf = (n: number) => all[n] as Fate;
          let starts = 0;
          const worker = defineConsumer(jobs, "worker", {
            deadLetter: "dead.jobs",
            retry: { attempts: 2, backoff: fixed(20) },
          });
          const { bindings } = createApp({ streams: [jobs, dead] }).handleBatch(worker, (messages) => {
            starts += 1;
            const is = (fate: Fate) => messages.filter(({ data }) => fateOf(data.n) === fate);
            if (is("breaks it for good").length > 0) throw new NonRetriableError("for good");
            if (is("breaks its batch").length > 0) throw new Error("once more");
            return { failed: is("is reported").map(({ sequence }) => ({ sequence, error: new Error("reported") })) };
          });
          const clock = startClock(Date.now() + 60_000, Date.now);
          const left = new Map<number, Outcome[]>();
          await startTogether(
            all.map((fate, n) => heldOf(n, fate)),
            {
              binding: bindings[0]!,
              shared: { clock, host: "here", rounds: createRounds(Date.now) } as Circumstances, // a batch that publishes nothing needs no more
              mayStart: () => starts < startsInTime,
              holds: () => false,
              isOurs: () => true,
              announce: () => Promise.reject(new Error("each start is known to be the first")),
              inTime: async () => [],
              ended: () => {},
              leave: ({ delivery: { sequence } }, outcome) => {
                left.set(sequence, [...(left.get(sequence) ?? []), outcome]);
              },
            },
          );
          clock.end();
          const read = all.filter((fate) => fate !== "cannot be read").length;
          expect(starts).toBeLessThanOrEqual(Math.max(0, 2 * read - 1));
          for (const [n, fate] of all.entries()) {
            const [outcome, ...others] = left.get(n)!;
            expect(others).toEqual([]);
            const { settlement, attempts } = outcome!;
            if (attempts.apart) {
              // there was no time to tell: nobody is charged
              expect(startsInTime).toBeLessThan(Infinity);
              expect({ settlement, started: attempts.started }).toEqual({ ...retried, started: 0 });
              continue;
            }
            expect({ settlement, started: attempts.started }).toEqual(ends[fate]);
          }
        },
      ),
    );
  });
});
