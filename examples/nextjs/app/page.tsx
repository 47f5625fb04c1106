import { connection } from "next/server";
import { imagesUrl } from "@/lib/imgproxy";
import { Gallery } from "./gallery";

export default async function Page() {
  // The settings are read, and the URLs signed, when the page is asked for, not when it is built.
  await connection();
  return <Gallery route="with Afterimage" base={imagesUrl()} />;
}
