// Three ways for the night to end, all of them from the Quay.

=== lit_quay
~ lit = lit + 1
~ spend_oil()
The Quay Light comes on.
You have seen it do so eleven hundred times from below. You have never before been behind it, where it is not a light at all but a great white door going open, and the fog falling back from it down the steps of the sea.
{ lit >= 3: -> ending_lit }
It is two lamps. It is not three in a line. The Perpetua has to be talked in by it, yard by yard, with every soul on the quay-side houses come down in nightshirts to hold up candles where the other lamps ought to be; and she leaves some of her paint on the Teeth, and a good deal of her railing, and not one single passenger.
-> ending_lit

=== ending_lit
~ place = "The Quay, after midnight"
The Perpetua comes in at four minutes past the hour with her band playing, because nobody has told the band. Sixty souls and the mail. They go by you in twos and threes, yawning, cross about the delay, holding sleeping children like parcels. Nobody looks up. It is a lamp. Why would anybody?
{ ines_trusts: Ines has hold of her father by both of his lapels and seems to be shouting at him. He looks as happy as you have ever seen a man look. }
Inside the mole the water is quite empty.
{ gave_word: You gave your word in Rope Lane. You stand over the empty water until you are certain that it is. Then you say, not loudly, that there will be other nights; that you will think of something; that you are not the other one. You have the sense of a cap being turned around, once, and put back on. }
{ osk_found: "They'll ask again," says Osk, beside you. "Next year." He thinks about it. "You might let me do the asking. I believe I know what comes after no." He has gone back to leaning on the pillar, but you notice that he is careful to lean on it with his shoulder, and not with his back. | You find Osk when the fog has gone, at the end of the breakwater in the first of the light, stiff and blue and furious, with his hat full of dry matches. "I saw it," he says, through his teeth, while you are rubbing his hands. "I saw it come on. I thought, that's never me. That's somebody awake." }
There is one thing more to do. You walk back up through the town the way you came, and in the wickhouse, under PERPETUA, MIDNIGHT, you take the chalk, and write in a hand rounder than his: "In." # ending: the harbour lit
-> END

=== ending_home
~ place = "The Quay, after midnight"
They come in together, in the end, the ship and the ferry.
You are the only one who sees it whole. The Perpetua feels her way up the channel with a man in her bows, and ahead of her, a length ahead, going softly from mark to mark as though she had done it every night for thirty years in her sleep, is a brig with no lights and no wake. Wherever the brig goes there is water. The ferry's pilot will tell it afterwards as luck, or as the feel of the wheel, and once, late on, to his daughter, as something else.
The Marchpane lies alongside for the time that it takes eleven men to step across. You hear the boards take their weight. They go by you up the quay, not fast, in the manner of people coming off a long watch, and each of them as he passes touches the pillar of the Light.
{ knows_names: You say the names as they go. You do not need the slate. The younger Fennimore turns at his, and grins, and he is no older than you are. }
{ osk_found: The last is Tarrant. He stops before Osk, and the two of them regard each other for some time: a man of forty who has been dead for thirty years, and an old man. "You got old, boy," says Tarrant at last. "You were meant to. It was us that were late." And he puts out his hand. | The last is Tarrant, with his cap in his hands. "There's a man on your breakwater," he says, "who'll want to be told. Say that we got in. Say we'd have liked him to come and have a drink, any time, these thirty years. We'd no way of asking." You find Osk by the sound of him, and you tell him, and it is a long while before he can stand. }
Then it is only a quay with the morning coming, and { leave_dark:a bell, which somebody really ought to go up and stop|a lamp, which somebody really ought to go up and put out}.
In the wickhouse, under PERPETUA, MIDNIGHT, there is another line, in chalk, in a hand that neither of you knows. MARCHPANE, it says. ELEVEN. IN. # ending: the marchpane home
-> END

=== ending_dark
~ place = "The Quay, in the dark"
You will say that the wind took it.
You do not decide to. It is just that when they come running, with lanterns, and blankets, and faces, and somebody asks, it is there in your mouth already, warm and whole, as if it had been left for you by the one who had the place before.
They are kind. It was a terrible night. The Perpetua has her bows on the Teeth and her stern in eleven fathoms; they got the boats away; they are still counting. { ines_trusts: Ines goes past you into the water up to her waist, and stands there, and counts the boats as well. | A girl whom you know by sight is standing in the water to her waist. Nobody can get her to come out. }
{ osk_found: Osk does not say anything. He sits on the bollard with your blanket round him, and looks at you, and there is no blame in it. That is what you will remember. He looks at you as one looks at somebody coming up the road to one's own house. | Nobody finds Osk, that night or later. There will be a slate. }
{ gave_word: Inside the mole the masts have come in close. "That's us, then," says Tarrant, very low. "That's us in. I never meant," he says, and does not seem to know how it should go on. You had promised him, and you have kept it. }
In a year you will have the pole, and a room up a ladder, and a candle to see to. You will be known as someone who cannot be got to sit down. And one night each winter, when the fog comes up with the tide beneath it, something on the water will start, quite gently, to ask. # ending: a dark quay
-> END
