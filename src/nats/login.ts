import type { Auth, Authenticator } from "@nats-io/nats-core";
import { SortieError } from "../errors.ts";
import { type Signer, signerOf } from "./nkey.ts";

/** What a function shows of itself; one of them, or a user and password in the URL. */
export interface Credentials {
  /** The contents of a `.creds` file: a JWT and the seed that belongs to it. */
  creds?: string | undefined;
  /** The seed of a user that the server knows by its public key: `SU…`. */
  nkey?: string | undefined;
  token?: string | undefined;
}

/** Answers the server's INFO. The client asks synchronously, so what is to be signed is signed before it sees INFO. */
export interface Login {
  /** Nothing to be signed where it is missing. */
  readonly prepare?: (nonce: string) => Promise<void>;
  readonly authenticator?: Authenticator;
  /** What the server calls it, where that is known. */
  readonly name?: string | undefined;
  /** What may be wrong with these credentials, where the server refuses them. */
  hint(now: number): string;
}

/** @throws SortieError `not-configured` for credentials that cannot be any, and for several at once. */
export function loginWith({ creds, nkey, token: text }: Credentials, user?: string): Login {
  const token = text?.trim(); // a file's last line ends, and no header of a secret store keeps spaces
  const given = [creds && "NATS_CREDS", nkey && "NATS_NKEY", token && "NATS_TOKEN"].filter(Boolean);
  if (given.length > 1)
    throw new SortieError("not-configured", `${given.join(" and ")} are set: expected one of them, as a login is one`);
  if (creds) {
    const { jwt, seed, claims } = readCreds(creds);
    const login = signed(
      signerOf(seed, "NATS_CREDS, its seed"),
      async () => ({ jwt }),
      (now) => hintOf(claims, now),
    );
    return { ...login, name: typeof claims.name === "string" ? claims.name : undefined };
  }
  if (nkey) {
    const signer = signerOf(nkey, "NATS_NKEY");
    return signed(
      signer,
      async () => ({ nkey: await signer.publicKey() }),
      () => "Check that the server's configuration has this user's public key (`nkey: U…`)",
    );
  }
  if (token) {
    return {
      authenticator: () => ({ auth_token: token }),
      hint: () => "Check NATS_TOKEN against the server's `authorization { token: … }`",
    };
  }
  if (user)
    return { name: user, hint: () => "Check the user and password in NATS_URL against the server's configuration" };
  return {
    hint: () =>
      "Set NATS_CREDS, NATS_NKEY or NATS_TOKEN, or a user and password in NATS_URL, to what the server asks for",
  };
}

function signed(signer: Signer, who: () => Promise<object>, hint: Login["hint"]): Login {
  let answer: Auth;
  return {
    async prepare(nonce) {
      const [sig, shown] = await Promise.all([signer.sign(nonce), who()]);
      answer = { ...shown, sig } as Auth;
    },
    authenticator: () => answer,
    hint,
  };
}

/** What is in a user's JWT, as far as it matters. */
interface Claims {
  name?: unknown;
  /** Epoch seconds. */
  exp?: number;
  nbf?: number;
  nats?: { type?: string; allowed_connection_types?: string[] };
}

function hintOf({ exp, nbf, nats }: Claims, now: number): string {
  const time = (seconds: number) => new Date(seconds * 1_000).toISOString();
  const types = nats?.allowed_connection_types ?? [];
  if (exp && exp * 1_000 <= now) return `The JWT in NATS_CREDS expired at ${time(exp)}: make a new one`;
  if (nbf && nbf * 1_000 > now) return `The JWT in NATS_CREDS is not valid before ${time(nbf)}`;
  if (types.length > 0 && !types.includes("WEBSOCKET"))
    return `The JWT in NATS_CREDS allows connections of type ${types.join(", ")} alone: allow WEBSOCKET`;
  return "Check that the user in NATS_CREDS is neither revoked nor of another operator, and that its seed is its own";
}

/** Takes a `.creds` file as it was, or after an environment has had its way with its line ends. */
function readCreds(text: string): { jwt: string; seed: string; claims: Claims } {
  const file = text.replaceAll("\\n", "\n").replaceAll("\\r", "");
  const refuse = (got: string): never => {
    throw new SortieError(
      "not-configured",
      `NATS_CREDS: expected the contents of a .creds file, which has a user's JWT and its seed, got ${got}`,
    );
  };
  const block = (name: string) => {
    const found = new RegExp(`-{3,}\\s*BEGIN ${name}\\s*-{3,}(?:\\s*(\\S+)\\s*-{3,}\\s*END ${name})?`).exec(file);
    if (found && !found[1]) refuse(`one whose ${name} has no end: it is cut short, or its parts are torn`);
    return found?.[1];
  };
  const jwt = block("NATS USER JWT");
  const seed = block("USER NKEY SEED");
  if (!jwt && !seed) {
    const path = !/\s/.test(file.trim()) && /[./]/.test(file) && !file.trim().startsWith("ey");
    refuse(
      path ? "what looks like a file's name: set what is in the file" : `${text.length} characters without either`,
    );
  }
  if (!jwt) return refuse("a seed without a JWT: a seed alone is NATS_NKEY");
  if (!seed) return refuse("a JWT without a seed: it is cut short");
  const claims = claimsOf(jwt) ?? refuse("a JWT that cannot be read: it was changed on its way here");
  const { type = "user" } = claims.nats ?? {};
  if (type !== "user") refuse(`the JWT of an ${type}, which cannot log in`);
  return { jwt, seed, claims };
}

function claimsOf(jwt: string): Claims | undefined {
  try {
    const [, payload = ""] = /^[\w-]+\.([\w-]+)\.[\w-]+$/.exec(jwt) ?? [];
    const claims: unknown = JSON.parse(atob(payload.replaceAll("-", "+").replaceAll("_", "/")));
    return typeof claims === "object" && claims !== null ? claims : undefined;
  } catch {
    return undefined;
  }
}
