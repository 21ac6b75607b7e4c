import { SortieError, textOf } from "../errors.ts";
import { openPuller } from "../nats/pull.ts";
import { pause } from "../nats/within.ts";
import type { Circumstances } from "./circumstances.ts";
import { type Hand, openHand } from "./hand.ts";
import type { Binding } from "./handler.ts";
import { planPull } from "./pull-size.ts";
import type { ConsumerReport } from "./report.ts";
import { type Source, sourcesOf } from "./source.ts";
import { openTally } from "./tally.ts";

/** How long to go on asking for what cannot be asked for at the moment, as while a consumer has no leader. */
const againForMs = 10_000;

/**
 * Pulls, handles and settles for one consumer until nothing is left to pull or the time is over. Never throws: what went
 * wrong is in the report.
 */
export async function runConsumer(binding: Binding, shared: Circumstances): Promise<ConsumerReport> {
  const tally = openTally(binding, shared.log);
  const { report } = tally;
  const hand = openHand(binding, shared, tally);
  const pulls = sourcesOf(binding.consumer).map((source) => pullFrom(source, binding, hand, shared));
  const ends = await Promise.allSettled(pulls);
  await hand.emptied();
  for (const end of ends) if (end.status === "rejected") tally.trouble(textOf(end.reason));
  if (ends.some(({ status }) => status === "rejected")) report.ended = "failed";
  else if (ends.every((end) => end.status === "fulfilled" && end.value === "drained")) report.ended = "drained";
  return report;
}

async function pullFrom(
  source: Source,
  { consumer }: Binding,
  hand: Hand,
  { connection, clock, lingerMs }: Circumstances,
): Promise<"drained" | "budget"> {
  const { now, signal } = clock;
  let quietSince = now(); // for as long as nothing has come
  const puller = openPuller(connection, source, (delivery) => {
    quietSince = now();
    hand.take(source.kind, delivery);
  });
  const leftMs = () => clock.budget.stopAt - clock.slowestMs - now();
  const { concurrency, batch: most, maxBytes: mostBytes } = consumer;
  let flightMs = 0;
  let pulls = 0; // under way
  let drained = false;
  let oversized = false; // the next message has more bytes than may be in hand beside the others
  let troubledAt: number | undefined;
  let failure: { readonly error: unknown } | undefined;

  function plan() {
    const none = { messages: 0, bytes: 0 };
    if (drained || (pulls > 0 && puller.pending <= puller.underWay)) return none; // what is there has been asked for
    if (oversized) return pulls === 0 && hand.bytes === 0 ? { messages: 1, bytes: Infinity } : none;
    const messages = hand.messages + puller.underWay;
    const { bytes, handlerMs } = hand;
    return planPull({ concurrency, most, mostBytes, messages, bytes, handlerMs, flightMs, leftMs: leftMs() });
  }

  async function pull(batch: number, maxBytes: number): Promise<void> {
    const asked = now();
    const waitMs = Math.max(0, Math.min(quietSince + lingerMs - asked, leftMs() - 10));
    const patienceMs = Math.min(2_500, clock.budget.publishBy - asked);
    pulls += 1;
    try {
      const end = await puller.pull({ batch, maxBytes, waitMs, patienceMs });
      if (waitMs === 0 && end !== "full" && end !== "again") {
        flightMs = now() - asked;
        clock.learn(flightMs);
      }
      if (end === "drained" || end === "full") drained = now() + 10 >= quietSince + lingerMs || leftMs() <= 20;
      oversized = end === "oversized";
      troubledAt = end === "again" ? (troubledAt ?? asked) : undefined;
    } catch (error) {
      failure = { error };
    } finally {
      pulls -= 1;
    }
  }

  try {
    while (!signal.aborted && leftMs() > 0) {
      if (failure) throw failure.error;
      if (troubledAt !== undefined) {
        if (now() - troubledAt > againForMs) break;
        await pause(Math.min(250, leftMs()), "waiting to pull again");
      }
      const { messages, bytes } = plan();
      // where nothing is asked for since of too many bytes, more is when they are gone
      const idle = () => pulls === 0 && hand.messages === 0 && (drained || hand.bytes === 0);
      if (messages > 0) {
        void hand.during(pull(messages, bytes));
      } else if (idle()) {
        if (!drained) break; // not even one would be finished
        return lingerMs === Infinity ? "budget" : "drained";
      } else {
        const before = pulls;
        await hand.until(() => signal.aborted || pulls < before || idle() || plan().messages > 0);
        // handlers still ran: another look when the last of them has ended, in the flight that settles its message
        if (drained && before === 0) {
          drained = false;
          quietSince = now();
        }
      }
    }
    if (failure) throw failure.error;
    if (troubledAt !== undefined) throw unavailable(source, now() - troubledAt);
    return "budget";
  } finally {
    await hand.until(() => pulls === 0 || lingerMs > 0); // what is under way comes to us, and is handed back
    puller.close();
  }
}

function unavailable({ stream, consumer }: Source, ms: number): SortieError {
  return new SortieError(
    "connection-lost",
    `Consumer "${consumer}" of stream "${stream}" could not be pulled from for ${(ms / 1_000).toFixed(1)} s: the server holds it back, or nobody leads it. Look at it: nats consumer info ${stream} ${consumer}`,
  );
}
