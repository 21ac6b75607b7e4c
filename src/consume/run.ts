import { textOf } from "../errors.ts";
import type { Delivery } from "../nats/delivery.ts";
import { openPuller } from "../nats/pull.ts";
import { attempt, type Circumstances } from "./attempt.ts";
import type { Binding } from "./handler.ts";
import type { ConsumerReport, InvocationEvent } from "./report.ts";
import { type Outcome, settle } from "./settle.ts";

/**
 * Pulls, handles and settles for one consumer until nothing is left to pull or the time is over. It pulls only what a
 * handler is free for, so that every delivery is started when it arrives and the server's count of deliveries is the
 * count of attempts. Never throws: what went wrong is in the report.
 */
export async function runConsumer(
  binding: Binding,
  shared: Circumstances,
  log: (event: InvocationEvent) => void,
): Promise<ConsumerReport> {
  const { consumer } = binding;
  const { connection, budget, now } = shared;
  const report: ConsumerReport = {
    stream: consumer.stream.name,
    consumer: consumer.name,
    pulled: 0,
    acked: 0,
    retried: 0,
    deadLettered: 0,
    returned: 0,
    unconfirmed: 0,
    ended: "budget",
  };
  const handling = new Map<Delivery, Promise<void>>();
  const settling = new Set<Promise<void>>();
  let pulling = true;

  const puller = openPuller(connection, { stream: report.stream, consumer: report.consumer }, (delivery) => {
    report.pulled += 1;
    if (!pulling || now() >= budget.stopAt) {
      settleLater(delivery, { settlement: { kind: "return" }, attempts: delivery.deliveryCount - 1 });
      return;
    }
    const handled = attempt(binding, delivery, shared).then((outcome) => {
      handling.delete(delivery);
      settleLater(delivery, outcome);
    });
    handling.set(delivery, handled);
  });
  const heartbeat = setInterval(() => {
    try {
      for (const delivery of handling.keys()) connection.publish(delivery.ackSubject, "+WPI");
    } catch {
      // the connection is closed, which the settlements will tell
    }
  }, consumer.ackWaitMs / 2);

  try {
    let roundTripMs = 0;
    while (now() + roundTripMs < budget.stopAt) {
      const free = consumer.concurrency - handling.size;
      if (free === 0) {
        await Promise.race(handling.values());
        continue;
      }
      const asked = now();
      const end = await puller.pull(free, Math.min(2_500, budget.publishBy - asked));
      roundTripMs = now() - asked;
      if (end === "drained") {
        report.ended = "drained";
        break;
      }
    }
  } catch (error) {
    report.ended = "failed";
    report.error = textOf(error);
  } finally {
    pulling = false; // what still comes, the answer to a pull that was given up, is returned
    while (handling.size + settling.size > 0) await Promise.allSettled([...handling.values(), ...settling]);
    clearInterval(heartbeat);
  }
  return report;

  function settleLater(delivery: Delivery, outcome: Outcome): void {
    const settled = settle(connection, consumer, delivery, outcome, { now, by: budget.settleBy })
      .then(
        (really) => count(delivery, really),
        (error: unknown) => {
          report.unconfirmed += 1;
          log({ ...about(delivery, outcome), event: "unconfirmed", error: textOf(error) });
        },
      )
      .finally(() => settling.delete(settled));
    settling.add(settled);
  }

  function count(delivery: Delivery, outcome: Outcome): void {
    const { settlement, error } = outcome;
    switch (settlement.kind) {
      case "ack":
        report.acked += 1;
        break;
      case "return":
        report.returned += 1;
        break;
      case "retry":
        report.retried += 1;
        log({ ...about(delivery, outcome), event: "retried", delayMs: settlement.delayMs, error: textOf(error) });
        break;
      case "dead-letter":
        report.deadLettered += 1;
        log({
          ...about(delivery, outcome),
          event: "dead-lettered",
          reason: settlement.reason,
          deadLetter: consumer.deadLetter,
          error: textOf(error),
        });
        break;
    }
  }

  function about({ message, sequence }: Delivery, { attempts }: Outcome) {
    return { stream: report.stream, consumer: report.consumer, subject: message.subject, sequence, attempt: attempts };
  }
}
