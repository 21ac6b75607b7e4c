import { textOf } from "../errors.ts";
import { isDenied } from "../nats/denied.ts";
import type { Outcome } from "./attempt.ts";
import type { Binding } from "./handler.ts";
import type { Held } from "./held.ts";
import type { Left } from "./left.ts";
import type { ConsumerReport, InvocationEvent } from "./report.ts";
import type { Settled } from "./settle.ts";

/** Keeps a consumer's report, and tells of every message that did not simply succeed. */
export interface Tally {
  readonly report: ConsumerReport;
  pulled(one: Held): void;
  /** Of messages that simply succeeded. */
  acknowledged(messages: number): void;
  count(one: Held, settled: Settled): void;
  unconfirmed(one: Held, outcome: Outcome, error: unknown): void;
  leaseLost(one: Held): void;
  /** Something that is wrong with more than a message; the first is reported. */
  trouble(error: string): void;
}

export function openTally({ consumer }: Binding, log: (event: InvocationEvent) => void, left: Left): Tally {
  const report: ConsumerReport = {
    stream: consumer.stream.name,
    consumer: consumer.name,
    pulled: 0,
    acked: 0,
    discarded: 0,
    duplicates: 0,
    retried: 0,
    deadLettered: 0,
    returned: 0,
    unconfirmed: 0,
    leaseLost: 0,
    more: false,
    ended: "budget",
  };
  return {
    report,
    pulled(one) {
      one.counted = true;
      report.pulled += 1;
    },
    acknowledged(messages) {
      report.acked += messages;
    },
    count(one, settled) {
      left.settled(one, settled);
      const { settlement, error, attempts, trouble: beside } = settled;
      if (beside) trouble(beside);
      if (!one.counted || (one.lost && settlement.kind !== "ack")) return;
      const about = () => aboutOf(one, attempts.started);
      switch (settlement.kind) {
        case "ack":
          report.acked += 1;
          if (settlement.duplicate) {
            report.duplicates += 1;
            log({ ...about(), event: "duplicate" });
          }
          if (!settlement.discarded) break;
          report.discarded += 1;
          log({ ...about(), event: "discarded", error: textOf(error) });
          break;
        case "return":
          report.returned += 1;
          break;
        case "retry":
          report.retried += 1;
          log({ ...about(), event: "retried", delayMs: settlement.delayMs, error: textOf(error) });
          break;
        case "dead-letter":
          report.deadLettered += 1;
          log({
            ...about(),
            event: "dead-lettered",
            reason: settlement.reason,
            deadLetter: consumer.deadLetter,
            error: textOf(error),
          });
          break;
      }
    },
    unconfirmed(one, { attempts }, error) {
      left.unconfirmed(one);
      report.unconfirmed += 1;
      if (isDenied(error)) trouble(textOf(error));
      log({ ...aboutOf(one, attempts.started), event: "unconfirmed", error: textOf(error) });
    },
    leaseLost(one) {
      report.leaseLost += 1;
      log({ ...aboutOf(one, one.entry?.attempts.started ?? 0), event: "lease-lost" });
    },
    trouble,
  };

  function trouble(error: string): void {
    report.error ??= error;
  }

  function aboutOf({ delivery: { subject, sequence } }: Held, attempt: number) {
    return { stream: report.stream, consumer: report.consumer, subject, sequence, attempt };
  }
}
