import type { Binding } from "../consume/handler.ts";

/** What is left to one invocation on a plan of Cloudflare's. */
interface Plan {
  /** How many handlers run at the same time. */
  readonly concurrency: number;
  /** The most messages, over all consumers. */
  readonly messages: number;
  /** The most bytes in hand, over all consumers. */
  readonly bytes: number;
}

/**
 * Workers Free: 10 ms of CPU, of which connecting takes 3 and a message a twentieth besides its handler; 50 subrequests, of
 * which the connection is one and a handler has one; of 6 simultaneous connections NATS has one. Workers Paid: 30 s of CPU
 * and 10,000 subrequests, which nobody reaches who does not fetch; but the same 128 MB, and what is in hand is there twice.
 */
export const plans = {
  free: { concurrency: 5, messages: 40, bytes: 1024 * 1024 },
  paid: { concurrency: Infinity, messages: Infinity, bytes: 48 * 1024 * 1024 },
} satisfies Record<string, Plan>;

export type PlanName = keyof typeof plans;

/** How an invocation over these consumers keeps within a plan, of which there are so many at the same time. */
export function boundedBy(name: PlanName, bindings: readonly Binding[], sharers = 1) {
  const { concurrency, messages, bytes } = plans[name];
  const shareOf = (amount: number) => Math.max(1, Math.floor(amount / sharers));
  const share = Math.floor(shareOf(bytes) / Math.max(1, bindings.length));
  return {
    concurrency: shareOf(concurrency),
    messages: shareOf(messages),
    bindings: bindings.map((binding): Binding => {
      const { consumer } = binding;
      return consumer.maxBytes <= share ? binding : { ...binding, consumer: { ...consumer, maxBytes: share } };
    }),
  };
}
