import type { ConsumerInfo } from "../nats/consumer-info.ts";

/** A message that comes again. */
export interface PutOff {
  /** When, in epoch milliseconds. */
  readonly dueAt: number;
  /** Whether it is unsettled with its own consumer meanwhile, and not elsewhere. */
  readonly outstanding: boolean;
}

/** The server's word on a consumer. */
export interface Asked {
  readonly info: ConsumerInfo;
  /** How many messages were in hand, to be settled in that flight. */
  readonly unsettled: number;
}

/** What is left of a consumer, as far as it is known. */
export interface Remainder {
  readonly lag?: number;
  readonly nextDueIn?: number;
  /** How many messages another invocation would find now. */
  readonly ready: number;
}

/** Sums up what is left, from what an invocation knows, and what the server said where it was asked. */
export function planRemainder({
  isHeld,
  waiting,
  isServed = false,
  putOff,
  asked,
  maxAckPending,
  now,
}: {
  /** Whether what held this invocation back would hold the next one back. */
  isHeld: boolean;
  waiting: {
    readonly own?: number | undefined;
    readonly parked?: number | undefined;
    readonly exhausted?: number | undefined;
  };
  /** Whether the server gave all that was asked for until the end. @default no */
  isServed?: boolean;
  putOff: readonly PutOff[];
  asked: Asked | undefined;
  maxAckPending: number;
  now: number;
}): Remainder {
  const pending = asked?.info.num_pending ?? waiting.own;
  const kept = putOff.filter(({ outstanding }) => outstanding).length;
  // what was on its way to be settled when the server counted is settled by now
  const outstanding = Math.max(kept, (asked?.info.num_ack_pending ?? 0) - (asked?.unsettled ?? 0));
  const most = asked?.info.config?.max_ack_pending ?? maxAckPending;
  const isFull = most !== -1 && outstanding >= most;
  const due = putOff.filter(({ dueAt }) => dueAt <= now).length;
  const isMoreThere = isServed && !isFull;
  // what was delivered before and is there again is counted nowhere by itself: some of it may be in the hands of others
  const again = isMoreThere ? Math.max(0, outstanding - kept) : 0;
  const counted = due + (isFull ? 0 : (pending ?? 0)) + again + (waiting.parked ?? 0) + (waiting.exhausted ?? 0);
  const found = asked ? counted : Math.max(counted, isMoreThere ? 1 : 0);
  const nextDueAt = putOff.reduce((soonest, { dueAt }) => Math.min(soonest, dueAt), Infinity);
  return {
    ready: isHeld ? 0 : found,
    ...(pending !== undefined && { lag: pending + outstanding }),
    ...(putOff.length > 0 && { nextDueIn: Math.max(0, Math.ceil(nextDueAt - now)) }),
  };
}
