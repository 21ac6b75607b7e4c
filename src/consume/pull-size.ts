/** What there is to know when an invocation is about to pull. */
export interface InHand {
  readonly concurrency: number;
  /** The most messages, and bytes, to have in hand. */
  readonly most: number;
  readonly mostBytes: number;
  /** What is in hand now: messages that are handled or wait for a handler, and the bytes of all that is not gone. */
  readonly messages: number;
  readonly bytes: number;
  /** How long a handler takes, in milliseconds; undefined as long as none has ended. */
  readonly handlerMs: number | undefined;
  /** How long a pull takes, in milliseconds. */
  readonly flightMs: number;
  /** How long handlers may still run, in milliseconds. */
  readonly leftMs: number;
}

/**
 * How much to pull, so that handlers are kept busy while the next pull is under way and what is pulled is almost always
 * finished: 0 for nothing now. As long as no handler has ended, only what can be started at once.
 */
export function planPull(hand: InHand): { messages: number; bytes: number } {
  const { concurrency, handlerMs, flightMs, leftMs, most } = hand;
  const bytes = hand.mostBytes - hand.bytes;
  const none = { messages: 0, bytes: 0 };
  if (bytes <= 0 || leftMs <= 0) return none;
  const start = Math.min(concurrency, most);
  if (handlerMs === undefined) return { messages: Math.max(0, start - hand.messages), bytes };
  const perMs = concurrency / Math.max(handlerMs, 0.001);
  const finishable = Math.floor((perMs * leftMs) / 1.5); // some take longer than the others
  const wanted = Math.min(most, finishable, concurrency + Math.ceil(perMs * Math.max(2 * flightMs, 5)));
  // several at once: asking for each place as it becomes free would be a round trip for each
  const ahead = Math.max(1, Math.ceil((wanted - start) / 2));
  const room = wanted - hand.messages;
  return room >= Math.min(ahead, wanted) && room > 0 ? { messages: room, bytes } : none;
}
