import { connection } from "next/server";
import { imagesUrl } from "@/lib/imgproxy";
import { Gallery } from "../gallery";

/** The same page on the route of Envoy's that Afterimage is switched off for. */
export default async function Page() {
  await connection();
  return <Gallery route="without Afterimage" base={`${imagesUrl()}/uncached`} />;
}
