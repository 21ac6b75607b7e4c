import type { NatsConnection } from "@nats-io/nats-core";
import { SortieError } from "../errors.ts";

/** Whether the server has refused something for want of a permission: it has not happened. */
export function isDenied(error: unknown): boolean {
  return error instanceof Error && (/permissions violation/i.test(error.message) || isDenied(error.cause));
}

/** Where it is told what a login needs. */
export const permissionsHint =
  "`npx sortie permissions <the module with your app>` prints what the login of each function needs";

/** As `request`, with an error that says what to do where this login lacks a permission: `permission-denied`. */
export function explainingDenial(request: NatsConnection["request"]): NatsConnection["request"] {
  return (...asked) =>
    request(...asked).catch((error: unknown) => {
      if (error instanceof SortieError || !isDenied(error)) throw error; // it has been explained already
      const { message } = error as Error;
      throw new SortieError("permission-denied", `${message}: this login lacks it. ${permissionsHint}`, {
        cause: error,
      });
    });
}
