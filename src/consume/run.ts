import { SortieError, textOf } from "../errors.ts";
import { openPuller } from "../nats/pull.ts";
import type { Circumstances } from "./circumstances.ts";
import { type Hand, openHand } from "./hand.ts";
import type { Binding } from "./handler.ts";
import { planPull } from "./pull-size.ts";
import type { ConsumerReport } from "./report.ts";
import { type Source, sourcesOf } from "./source.ts";
import { openTally, type Tally } from "./tally.ts";

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
  const pulls = sourcesOf(binding.consumer).map((source) => pullFrom(source, binding, hand, tally, shared));
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
  { report }: Tally,
  { connection, clock, lingerMs }: Circumstances,
): Promise<"drained" | "budget"> {
  const { now, signal } = clock;
  const puller = openPuller(connection, source, (delivery) => {
    report.pulled += 1;
    hand.take(source.kind, delivery);
  });
  const leftMs = () => clock.budget.stopAt - clock.slowestMs - now();
  let flightMs = 0;
  let troubledAt: number | undefined;
  try {
    while (!signal.aborted && leftMs() > 0) {
      const { messages, bytes: handBytes, handlerMs } = hand;
      const asks = planPull({
        concurrency: consumer.concurrency,
        most: consumer.batch,
        mostBytes: consumer.maxBytes,
        messages,
        bytes: handBytes,
        handlerMs,
        flightMs,
        leftMs: leftMs(),
      });
      if (asks.messages === 0) {
        if (messages === 0) break; // not even one would be finished
        await hand.changed();
        continue;
      }
      const asked = now();
      const waitMs = Math.max(0, Math.min(lingerMs, leftMs() - 10));
      const patienceMs = Math.min(2_500, clock.budget.publishBy - asked);
      const end = await puller.pull({ batch: asks.messages, maxBytes: asks.bytes, waitMs, patienceMs });
      if (waitMs === 0) {
        flightMs = now() - asked;
        clock.learn(flightMs);
      }
      if (end === "again") {
        troubledAt ??= asked;
        if (now() - troubledAt > againForMs) throw unavailable(source);
        await new Promise((resolve) => setTimeout(resolve, Math.min(250, Math.max(0, leftMs()))));
        continue;
      }
      troubledAt = undefined;
      if (end !== "drained" || now() - asked + 10 < Math.min(lingerMs, leftMs())) continue;
      if (hand.messages === 0) return lingerMs === Infinity ? "budget" : "drained";
      // handlers still run: another look when the last of them has ended, in the flight that settles its message
      while (hand.messages > 0) await hand.changed();
    }
    return "budget";
  } finally {
    puller.close();
  }
}

function unavailable({ stream, consumer }: Source): SortieError {
  return new SortieError(
    "connection-lost",
    `Consumer "${consumer}" of stream "${stream}" could not be pulled from for ${againForMs / 1_000} s: the server holds it back, or nobody leads it. Look at it: nats consumer info ${stream} ${consumer}`,
  );
}
